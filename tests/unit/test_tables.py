"""HeadTable and PairTable: numbers with heads, and files that give the same numbers back."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headscope.errors import StorageError, UnknownNameError
from headscope.heads import HeadId
from headscope.tables import HeadTable, PairTable

floats = st.floats(allow_nan=True, allow_infinity=True, width=64)


def _heads(n: int) -> tuple[HeadId, ...]:
    return tuple(HeadId(index // 2, 3 * (index % 2)) for index in range(n))


def _head_table(score: np.ndarray, **facts: object) -> HeadTable:
    return HeadTable("ablation", "nats/token", _heads(len(score)), score, score - 1, score + 1, facts)


def _pair_table(matrix: np.ndarray, *, symmetric: bool = False, **facts: object) -> PairTable:
    return PairTable("cka", "z", _heads(len(matrix)), matrix, matrix / 2, matrix * 2, facts, symmetric=symmetric)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@settings(deadline=None, max_examples=30)
@given(arrays(np.float64, st.integers(0, 6), elements=floats))
def test_head_table_comes_back_bit_equal(folder: Path, score: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        table = _head_table(score, documents=3, tokens=40, metric="loss")
    table.save(folder)
    back = HeadTable.load(folder, "ablation")
    assert (back.name, back.unit, back.heads, back.facts) == (table.name, table.unit, table.heads, table.facts)
    for name in ("score", "low", "high"):
        np.testing.assert_array_equal(getattr(back, name), getattr(table, name))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 4).flatmap(lambda n: arrays(np.float64, (n, n), elements=floats)), st.booleans())
def test_pair_table_comes_back_bit_equal(folder: Path, matrix: np.ndarray, symmetric: bool) -> None:
    with np.errstate(all="ignore"):
        table = _pair_table(matrix, symmetric=symmetric, scope="layer")
    table.save(folder)
    back = PairTable.load(folder, "cka")
    assert (back.name, back.of, back.heads, back.facts) == (table.name, table.of, table.heads, table.facts)
    assert back.symmetric == symmetric
    np.testing.assert_array_equal(back.matrix, table.matrix)
    asked = ~np.isnan(table.matrix)
    np.testing.assert_array_equal(back.low[asked], table.low[asked])
    np.testing.assert_array_equal(back.high[asked], table.high[asked])


def test_values_are_found_by_any_spelling() -> None:
    table = _head_table(np.array([0.1, 0.2, 0.3]))
    assert table["L0H3"] == table[0, 3] == table[HeadId(0, 3)] == 0.2
    pairs = _pair_table(np.arange(9.0).reshape(3, 3))
    assert pairs["L0H3", (1, 0)] == 5.0
    assert pairs["L1H0", "L0H3"] == 7.0


def test_a_head_that_is_not_in_the_table_is_named_with_those_that_are() -> None:
    with pytest.raises(UnknownNameError, match="L0H1 is not in this table of 3 heads; of layer 0: L0H0, L0H3"):
        _head_table(np.zeros(3))["L0H1"]
    with pytest.raises(UnknownNameError, match=r"L9H0 .* of layer 9: none"):
        _pair_table(np.zeros((3, 3)))["L0H0", "L9H0"]


def test_frames_have_the_promised_columns() -> None:
    frame = _head_table(np.array([0.5, np.nan]), documents=7, tokens=90).to_frame()
    assert list(frame) == ["layer", "head", "score", "low", "high", "n_documents", "n_tokens"]
    assert frame["head"].tolist() == [0, 3]
    assert frame["n_documents"].tolist() == [7, 7]
    assert _head_table(np.array([0.5])).to_frame()["n_tokens"].isna().all()

    matrix = np.array([[1.0, 0.25], [np.nan, 1.0]])
    pairs = _pair_table(matrix, documents=7, tokens=90).to_frame()
    want = pd.DataFrame(
        {
            "head_a": ["L0H0", "L0H0", "L0H3"],
            "head_b": ["L0H0", "L0H3", "L0H3"],
            "value": [1.0, 0.25, 1.0],
            "low": [0.5, 0.125, 0.5],
            "high": [2.0, 0.5, 2.0],
            "n_documents": [7, 7, 7],
            "n_tokens": [90, 90, 90],
        }
    )
    pd.testing.assert_frame_equal(pairs.astype({"head_a": str, "head_b": str}), want, check_dtype=False)


def test_a_symmetric_measure_gives_each_pair_once_unless_every_pair_is_asked_for(tmp_path: Path) -> None:
    given = np.array([[1.0, 0.25, np.nan], [0.2500001, 1.0, 0.5], [np.nan, 0.75, np.nan]])
    table = _pair_table(given, symmetric=True)
    assert table["L0H3", "L0H0"] == table["L0H0", "L0H3"] == 0.25, "what stands above the diagonal stands for both"
    want = [("L0H0", "L0H3", 0.25), ("L0H3", "L1H0", 0.5)]
    both = want + [(b, a, value) for a, b, value in want] + [("L0H0", "L0H0", 1.0), ("L0H3", "L0H3", 1.0)]
    names = ["head_a", "head_b", "value"]
    assert [*table.to_frame()[names].itertuples(index=False, name=None)] == want
    every = table.to_frame(every=True)
    assert sorted(every[names].itertuples(index=False, name=None)) == sorted(both)
    assert every["low"].tolist() == (every["value"] / 2).tolist()
    table.save(tmp_path)
    saved = pd.read_csv(tmp_path / "cka.csv")
    assert len(saved) == 4, "each pair once, and two self-pairs: that the third head has none tells that it is constant"
    stored = pd.read_parquet(tmp_path / "cka.parquet")
    apart = stored[stored["head_a"] != stored["head_b"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(apart[names], table.to_frame()[names])


def test_tables_of_two_models_and_of_measures_that_are_not_symmetric_hold_every_pair() -> None:
    matrix = np.array([[1.0, 0.2], [0.3, 1.0]])
    heads, none = _heads(2), np.full((2, 2), np.nan)
    two = PairTable("cka", "z", heads, matrix, none, none, other=heads, symmetric=True)
    one = PairTable("predict", "z", heads, matrix, none, none)
    for table in (two, one):
        assert table.to_frame()["value"].tolist() == [1.0, 0.2, 0.3, 1.0]
        assert table["L0H3", "L0H0"] == 0.3


def test_files_of_before_hold_every_pair_and_are_still_read(tmp_path: Path) -> None:
    matrix = np.array([[1.0, 0.25], [0.25, 1.0]])
    _pair_table(matrix).save(tmp_path)
    about = json.loads((tmp_path / "cka.json").read_text())
    del about["symmetric"]
    (tmp_path / "cka.json").write_text(json.dumps(about))
    back = PairTable.load(tmp_path, "cka")
    np.testing.assert_array_equal(back.matrix, matrix)
    assert len(back.to_frame()) == 4


@pytest.mark.parametrize("other", [None, (HeadId(11, 0), HeadId(3, 1), HeadId(10, 2), HeadId(2, 1))])
def test_names_of_heads_sort_compare_and_pivot_as_numbers(other: tuple[HeadId, ...] | None) -> None:
    heads = (HeadId(2, 1), HeadId(2, 10), HeadId(10, 2), HeadId(11, 0))
    matrix = np.arange(16.0).reshape(4, 4)
    frame = (
        PairTable("predict", "z", heads, matrix, matrix, matrix, other=other).to_frame().sample(frac=1, random_state=0)
    )
    ordered = [HeadId.parse(name) for name in frame.sort_values("head_b", kind="stable")["head_b"]]
    assert ordered == sorted(ordered)
    assert ordered[0] == HeadId(2, 1)
    below = {
        (HeadId.parse(a), HeadId.parse(b)) for a, b in frame.query("head_a < head_b")[["head_a", "head_b"]].to_numpy()
    }
    assert below == {(a, b) for a in heads for b in other or heads if a < b}
    pivoted = frame.pivot(index="head_a", columns="head_b", values="value")
    assert [*pivoted.index] == [*map(str, heads)]


def test_further_columns_nulls_and_another_model_s_heads_come_back(tmp_path: Path) -> None:
    score = np.array([0.1, 0.2, 0.3])
    table = HeadTable("ablation", "nats", _heads(3), score, score, score, {}, {"p_value": np.array([0.5, np.nan, 1.0])})
    assert list(table.to_frame())[:6] == ["layer", "head", "score", "low", "high", "p_value"]
    table.save(tmp_path)
    np.testing.assert_array_equal(HeadTable.load(tmp_path, "ablation").columns["p_value"], table.columns["p_value"])

    matrix = np.arange(6.0).reshape(3, 2) / 7
    pairs = PairTable(
        "pattern_js", "pattern", _heads(3), matrix, matrix, matrix, {}, {"random_tokens": matrix / 2}, _heads(4)[2:]
    )
    assert pairs["L0H3", "L1H0"] == matrix[1, 0]
    pairs.save(tmp_path)
    back = PairTable.load(tmp_path, "pattern_js")
    assert back.other == pairs.other
    np.testing.assert_array_equal(back.matrix, matrix)
    np.testing.assert_array_equal(back.nulls["random_tokens"], matrix / 2)
    assert list(pairs.to_frame())[5] == "random_tokens"
    nothing = np.empty((3, 0))
    PairTable("cka", "z", _heads(3), nothing, nothing, nothing, other=()).save(tmp_path)
    assert PairTable.load(tmp_path, "cka").matrix.shape == (3, 0)


def test_blocks_stand_beside_the_numbers_of_layers_and_come_back(tmp_path: Path) -> None:
    blocks = {"0": "encoder.0", "1": "decoder.0 cross"}
    heads = (HeadId(0, 0), HeadId(1, 0))
    none = np.full(2, np.nan)
    scores = HeadTable("norm", "", heads, np.ones(2), none, none, {"blocks": blocks})
    assert scores.to_frame()["block"].tolist() == ["encoder.0", "decoder.0 cross"]
    scores.save(tmp_path)
    assert HeadTable.load(tmp_path, "norm").to_frame().equals(scores.to_frame())
    gone = np.full((2, 2), np.nan)
    pairs = PairTable("cka", "z", heads, np.ones((2, 2)), gone, gone, {"blocks": blocks})
    frame = pairs.to_frame()
    assert frame[["block_a", "block_b"]].iloc[1].tolist() == ["encoder.0", "decoder.0 cross"]
    pairs.save(tmp_path)
    assert PairTable.load(tmp_path, "cka").to_frame().equals(frame)


def test_one_measure_of_two_tensors_has_files_of_its_own(tmp_path: Path) -> None:
    z, q = _pair_table(np.eye(2)), _pair_table(np.full((2, 2), 0.5))
    z.save(tmp_path)
    q.save(tmp_path, "cka_of_q")
    np.testing.assert_array_equal(PairTable.load(tmp_path, "cka").matrix, z.matrix)
    assert PairTable.load(tmp_path, "cka_of_q").name == "cka"
    np.testing.assert_array_equal(PairTable.load(tmp_path, "cka_of_q").matrix, q.matrix)
    score = _head_table(np.array([0.1, 0.2]))
    score.save(tmp_path, "mean_ablation")
    np.testing.assert_array_equal(HeadTable.load(tmp_path, "mean_ablation").score, score.score)


def test_parquet_holds_the_same_rows_as_csv_and_the_facts(tmp_path: Path) -> None:
    table = _head_table(np.array([0.1, np.nan, 1e-300]), documents=3, tokens=40)
    table.save(tmp_path)
    stored = pq.read_table(tmp_path / "ablation.parquet")
    pd.testing.assert_frame_equal(stored.to_pandas(), table.to_frame())
    assert json.loads(stored.schema.metadata[b"headscope"])["facts"] == {"documents": 3, "tokens": 40}


def _titles(page: str) -> list[str]:
    return re.findall(r'title="([^"]+)"', page)


def test_a_notebook_shows_a_score_as_layers_by_heads() -> None:
    page = _head_table(np.array([0.5, np.nan, -0.25]), why_no_interval="only 1 document")._repr_html_()
    assert "nats/token" in page
    assert "only 1 document" in page
    assert re.findall(r"<th[^>]*>([^<]*)</th>", page) == ["", "H0", "H3", "L0", "L1"]
    want = ["L0H0: 0.500 (−0.500 to 1.50)", "L0H3: no value", "L1H0: −0.250 (−1.25 to 0.750)"]
    assert _titles(page) == want
    assert _head_table(np.zeros(0))._repr_html_()


def test_a_notebook_shows_pairs_as_heads_by_heads() -> None:
    matrix = np.arange(16.0).reshape(4, 4) / 16
    whole = _pair_table(matrix)._repr_html_()
    assert "cka of z" in whole
    assert re.findall(r"<th[^>]*>([^<]*)</th>", whole)[:5] == ["", "L0H0", "L0H3", "L1H0", "L1H3"]
    assert _titles(whole)[0] == "L0H0, L0H3: 0.0625 (0.0312 to 0.125)"
    assert len(_titles(whole)) == 12, "a head with itself says nothing"
    within = np.where(np.kron(np.eye(2), np.ones((2, 2))) > 0, matrix, np.nan)
    blocks = _pair_table(within)._repr_html_()
    assert re.findall(r"<th[^>]*>([^<]*)</th>", blocks) == ["", "H0", "H3", "L0H0", "L0H3", "L1H0", "L1H3"]
    assert [title.split(":")[0] for title in _titles(blocks)] == [
        "L0H0, L0H3",
        "L0H3, L0H0",
        "L1H0, L1H3",
        "L1H3, L1H0",
    ]
    two = PairTable("cka", "z", _heads(2), matrix[:2, :3], matrix[:2, :3], matrix[:2, :3], other=_heads(3))
    assert len(_titles(two._repr_html_())) == 6, "of two models every pair is one"
    none = np.full((0, 0), np.nan)
    assert PairTable("cka", "z", (), none, none, none)._repr_html_()


def test_of_many_heads_a_notebook_shows_those_that_are_most_like_another() -> None:
    matrix = np.full((50, 50), 0.1)
    matrix[3, 49] = matrix[49, 3] = 0.9
    matrix[:3, :] = matrix[:, :3] = 0.01
    page = _pair_table(matrix)._repr_html_()
    assert "40 of 50 heads: those most like another; to_frame() has all" in page
    shown = {title.split(",")[0] for title in _titles(page)}
    assert len(shown) == 40
    assert {str(_heads(50)[49]), str(_heads(50)[3])} <= shown
    assert not {str(head) for head in _heads(3)} & shown


def test_tables_show_themselves_in_a_terminal() -> None:
    few = _head_table(np.array([0.5, np.nan]), why_no_interval="only <1> document")
    lines = repr(few).splitlines()
    assert lines[:2] == ["ablation (nats/token)", "no intervals: only <1> document"]
    assert lines[2].split()[:3] == ["layer", "head", "score"]
    assert len(lines) == 5
    assert "only &lt;1&gt; document" in few._repr_html_()
    assert len(repr(_head_table(np.zeros(500))).splitlines()) < 25


@pytest.mark.parametrize("damage", ["no csv", "no json", "cut json", "no column"])
def test_a_damaged_table_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    for table in (_head_table(np.array([0.5])), _pair_table(np.eye(2))):
        table.save(tmp_path)
        csv, about = tmp_path / f"{table.name}.csv", tmp_path / f"{table.name}.json"
        if damage == "no csv":
            csv.unlink()
        elif damage == "no json":
            about.unlink()
        elif damage == "cut json":
            about.write_text(about.read_text()[:20])
        else:
            csv.write_text(csv.read_text().replace("low", "lower"))
        with pytest.raises(StorageError, match=table.name):
            type(table).load(tmp_path, table.name)


def test_a_replaceability_of_an_earlier_version_is_not_taken_for_todays(tmp_path: Path) -> None:
    heads = (HeadId(0, 0), HeadId(0, 1))
    score = np.array([0.9, 0.5])
    HeadTable("replaceability", "", heads, score, score, score).save(tmp_path, "replaceability")
    with pytest.raises(StorageError, match=r"counted a head's constant too.*Make it again"):
        HeadTable.load(tmp_path, "replaceability")
    HeadTable("replaceability", "", heads, score, score, score, {}, {"constant": score}).save(tmp_path, "today")
    np.testing.assert_array_equal(HeadTable.load(tmp_path, "today").score, score)


def test_maps_beside_random_tokens_are_read_back_from_an_earlier_version(tmp_path: Path) -> None:
    heads = (HeadId(0, 0), HeadId(0, 1))
    matrix, beside = np.array([[1.0, 0.5], [0.5, 1.0]]), np.array([[1.0, 0.4], [0.4, 1.0]])
    table = PairTable("pattern_js", "pattern", heads, matrix, matrix, matrix, nulls={"random_tokens": beside})
    table.save(tmp_path, "maps")
    path, about = tmp_path / "maps.csv", tmp_path / "maps.json"
    path.write_text(path.read_text("utf-8").replace("random_tokens", "null"), "utf-8")
    about.write_text(json.dumps({**json.loads(about.read_text("utf-8")), "null": True, "nulls": None}), "utf-8")
    np.testing.assert_array_equal(PairTable.load(tmp_path, "maps").nulls["random_tokens"], beside)
