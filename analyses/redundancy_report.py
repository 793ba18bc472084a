"""The whole story of one model as a page: verdict, importance, similarity, facts.

python analyses/redundancy_report.py --model ./my-model --text notes.txt --out report
"""

import headscope as hs
from headscope.cli import script
from headscope.cli.options import Folder, Loading, ModelOption, Reading, Seed
from headscope.cli.story import analyzed


def main(
    model: ModelOption,
    folder: Folder,
    reading: Reading = Reading(),
    seed: Seed = 0,
    loading: Loading = Loading(),
) -> None:
    """Analyse a model and write its report."""
    folder.check()
    texts, loaded = reading.texts(), loading.load(model)
    run = analyzed(loaded, texts, hs.Budget(seed=seed))
    run.report(folder.out, force=folder.force)
    print(run.verdict.sentence)


if __name__ == "__main__":
    script(main)
