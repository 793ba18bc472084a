"""How alike are the heads of a model, what could stand in for what, and what does each do? Tables and figures."""

import headscope as hs
from headscope.cli import script
from headscope.cli.options import Folder, Intervals, Loading, Memory, Model, Sampling
from headscope.cli.printing import progress_told
from headscope.likeness.asking import How
from headscope.likeness.comparing import compare_heads
from headscope.likeness.measures import MEASURES
from headscope.reporting import figures
from headscope.text.tokens import spell

EXAMPLE = "When the cat saw the dog, the cat ran. When the bird saw the fish, the bird flew away."


def main(
    model: Model,
    folder: Folder,
    memory: Memory = "2GB",
    intervals: Intervals = False,
    sampling: Sampling = Sampling(length=256),
    loading: Loading = Loading(),
) -> None:
    """Compare heads by every measure, cluster and map them, find how many a layer needs, and name their roles.

    Example: python analyses/head_similarity.py ./my-model --text notes.txt --out similarity
    """
    folder.check()
    texts, loaded, seed = sampling.texts(), loading.load(model), sampling.seed
    batches = sampling.batches(loaded, texts)
    anatomy = hs.discover(loaded.model, None if loaded.batches is None else batches[0])
    every, how, no_sink = [(name, None) for name in MEASURES], How(seed=seed), How(seed=seed, skip_first=1)
    with progress_told() as step:
        seen = {"anatomy": anatomy, "progress": step}
        within = compare_heads(loaded.model, batches, every, how, **seen)
        without_first = compare_heads(loaded.model, batches, every, no_sink, **seen)
        across = hs.similarity(
            loaded.model, batches, "cka_biased", scope="model", memory=memory, intervals=intervals, **seen
        )
        needed = hs.redundancy(loaded.model, batches, **seen)
        norms = hs.importance(loaded.model, batches, "norm", **seen)
        jobs = hs.roles(loaded.model, batches, loaded.tokenizer, seed=seed, **seen)
    telling = [place for place, role in enumerate(jobs.role) if role in ("induction", "previous", "next", "duplicate")]
    drawn = {
        "similarity": figures.layer_blocks(within[0], label="CKA of z"),
        "similarity_without_first": figures.layer_blocks(without_first[0], label="CKA of z, first positions out"),
        "norms": figures.head_map(norms, label="norm of the contribution"),
        "redundancy": figures.redundancy_curve(needed),
        "roles": figures.role_map(jobs),
    }
    with folder.new() as new:
        for name, tables in (("within_layers", within), ("without_first", without_first), ("across_layers", [across])):
            (new / name).mkdir()
            for table in tables:
                table.save(new / name)
        try:
            clusters, chart = hs.cluster(across), hs.map_heads(across, seed=seed)
            clusters.save(new)
            chart.save(new)
            drawn["clusters"] = figures.cluster_matrix(across, clusters)
            drawn["map"] = figures.head_scatter(chart)
        except hs.HeadscopeError as error:
            print(f"no clusters and no map: {error}")
        if telling and loaded.tokenizer is not None:
            shown = max(telling, key=jobs.score.__getitem__)
            head = jobs.heads[shown]
            with hs.capture(loaded.model, ("pattern",), layers=[head.layer], anatomy=anatomy) as seen:
                inputs = loaded.tokenizer(EXAMPLE, return_tensors="pt").to(loaded.model.device)
                loaded.model(**inputs)
            place = anatomy.site(head.layer).position(head)
            words = spell(loaded.tokenizer, inputs["input_ids"][0].tolist())
            pattern = seen[head.layer].pattern[0, place].detach()
            label = f"attention of {head} ({jobs.role[shown]})"
            drawn["example_map"] = figures.example_map(pattern, words, label=label)
        for table in (needed, norms, jobs):
            table.save(new)
        for name, ax in drawn.items():
            figure = figures.figure_of(ax)
            figure.savefig(new / f"{name}.png", dpi=200)
            figure.savefig(new / f"{name}.pdf")
    print(needed.effective.to_string(index=False))
    print(jobs.to_frame()[["layer", "head", "role", "score", "low", "high", "example"]].to_string(index=False))


if __name__ == "__main__":
    script(main)
