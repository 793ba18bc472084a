"""Pages that quote headscope's messages, its report, and say which models it reads: all of it is still so."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

import headscope
from headscope.errors import AnatomyError
from headscope.reporting import SECTIONS, Figure, Table
from tests.pages import DOCS, blocks
from tests.unit.reporting.synthetic import analysis, stand_beside

TROUBLE, LIMITS = DOCS / "troubleshooting.md", DOCS / "limits.md"
_VARIES = "…"  # on a page: what a message puts in


@cache
def said() -> tuple[str, ...]:
    """All text in the code of headscope, broken where something is put in."""
    found = set()
    for file in Path(headscope.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return tuple(found)


def unsaid(message: str) -> list[str]:
    """The pieces of a quoted message that no text in the code holds."""
    pieces = [piece.strip(" ") for piece in message.split(_VARIES)]
    return [piece for piece in pieces if not any(piece in text for text in said())]


def in_boxes(page: Path) -> list[str]:
    """Messages in grey boxes, one a line."""
    return [line for block in blocks(page, "text") for line in block.splitlines()]


def table_of_models() -> str:
    """The table of models that were tried, on the page of limits."""
    (table,) = re.findall(r"^\| model \|.*?(?=\n\n)", LIMITS.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return str(table)


def in_prose(page: Path) -> list[str]:
    """Messages between backticks: words, not a command, a call or a name. Those of models are tried below."""
    spans = re.findall(r"`([^`\n]+)`", page.read_text("utf-8").replace(table_of_models(), ""))
    return [span for span in spans if span.count(" ") > 2 and not re.match(r"headscope |python |pip ", span)]


@pytest.mark.parametrize("message", in_boxes(TROUBLE))
def test_what_is_quoted_is_said(message: str) -> None:
    assert unsaid(message) == []


@pytest.mark.parametrize("message", in_prose(LIMITS))
def test_what_is_quoted_as_a_limit_is_said(message: str) -> None:
    assert unsaid(message) == []


def test_the_reader_of_messages_sees_what_is_not_said() -> None:
    assert unsaid("no attention was recognised in …, though something looks like it: …") == []
    assert unsaid("no attention was recognized in …, though something") == ["no attention was recognized in"]
    assert len(in_boxes(TROUBLE)) > 40
    assert len(in_prose(LIMITS)) > 0


def test_every_part_of_the_report_is_explained() -> None:
    page = (DOCS / "report.md").read_text("utf-8")
    headings = re.findall(r"^#{2,3} (.*)$", page, flags=re.MULTILINE)
    for section in SECTIONS.values():
        assert section.title in headings
        for block in section().blocks(stand_beside(analysis(3, 6), {"chance": 0.0, "untrained": 0.8})):
            if isinstance(block, Figure | Table):
                assert block.title in headings
            for column in block.columns if isinstance(block, Table) else ():
                name = re.escape(column.title.partition(",")[0])  # the unit comes after it
                assert re.search(rf"^\| {name} \||\*\*{name}\*\*", page, flags=re.MULTILINE), (block.title, name)


_SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64,
}  # fmt: skip
_TWO_SIDES = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
}  # fmt: skip
_LINEAR = {
    "num_key_value_heads": 2, "head_dim": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "num_experts_per_tok": 1,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "Longformer": ("longformer", _SIZES | {"attention_window": 8}),
    "LED": ("led", _TWO_SIDES | {"attention_window": 8}),
    "BigBird, block-sparse": (
        "big_bird", _SIZES | {"attention_type": "block_sparse", "block_size": 4, "num_random_blocks": 1},
    ),
    "Reformer": ("reformer", _SIZES | {
        "attention_head_size": 8, "attn_layers": ["lsh", "local"], "axial_pos_embds": False, "num_buckets": 2,
        "lsh_attn_chunk_length": 8, "local_attn_chunk_length": 8, "feed_forward_size": 48,
    }),
    "Nyströmformer": ("nystromformer", _SIZES | {"num_landmarks": 4, "segment_means_seq_len": 16}),
    "Mamba": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "Qwen3-Next": ("qwen3_next", _SIZES | _LINEAR),
    "ConvBERT": ("convbert", _SIZES | {"embedding_size": 32}),
    "FNet": ("fnet", _SIZES),
    "DiffLlama": ("diffllama", _SIZES | {"num_key_value_heads": 4}),
    "BitNet": ("bitnet", _SIZES | {"num_key_value_heads": 4}),
    "OLMo 2": ("olmo2", _SIZES | {"num_key_value_heads": 4}),
}  # fmt: skip


def rows() -> Iterator[tuple[str, str, str]]:
    """The table of models: name, what comes out, and the words for it."""
    for line in table_of_models().splitlines()[2:]:
        name, comes, words = (cell.strip() for cell in line.strip("|").split("|"))
        yield name, comes, words.strip("`")


def test_the_table_holds_the_models_that_are_tried() -> None:
    assert [name for name, *_ in rows()] == [*MODELS]


@pytest.mark.parametrize("row", [*rows()], ids=lambda row: row[0])
def test_a_model_is_read_as_the_table_says(row: tuple[str, str, str]) -> None:
    name, comes, words = row
    kind, settings = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=99, **settings)).eval()
    ids = torch.randint(5, 99, (2, 32), generator=torch.Generator().manual_seed(0))
    example = {"input_ids": ids, **({"decoder_input_ids": ids[:, :7]} if model.config.is_encoder_decoder else {})}
    if comes.startswith("refused"):
        with pytest.raises(AnatomyError, match=re.escape(words.strip(f" {_VARIES}"))):
            headscope.discover(model, example)
        return
    anatomy = headscope.discover(model, example)
    assert words in " ".join(anatomy.remarks)
    if comes.startswith("everything"):
        assert all(site.prunable and not site.refused for site in anatomy.sites)
    if comes.startswith("maps and likeness"):
        assert not any(site.apart for site in anatomy.sites)
        assert all("pattern" not in site.refused for site in anatomy.sites)
    if "no cut" in comes or "not cut" in comes:
        assert any(site.uncuttable for site in anatomy.sites)
