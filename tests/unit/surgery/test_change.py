import pytest
from torch import nn

from headscope.errors import SurgeryError
from headscope.sites import Site, Slices
from headscope.surgery.change import SiteChange


def grouped_site(n_heads=6, n_kv=2, dim=4, **more):
    def part(name, heads):
        return Slices(name, tuple(tuple(range(head * dim, (head + 1) * dim)) for head in range(heads)))

    return Site(
        layer=3, kind="causal", block=3, module_name="h.3", call=0, unit="h.3", route="registry", n_heads=n_heads,
        n_kv_heads=n_kv, n_value_heads=more.get("n_value_heads", n_kv), head_dim=dim, value_dim=dim, scaling=0.5,
        head_ids=tuple(range(n_heads)),
        kv_of_query=more.get("kv_of_query", tuple(head * n_kv // n_heads for head in range(n_heads))),
        query=(part("q", n_heads),), key=(part("k", n_kv),), value=(part("v", n_kv),), output=part("o", n_heads),
    )  # fmt: skip


def change(gone, **more):
    site = grouped_site(**more)
    return SiteChange(site, tuple(gone), site)


def test_a_key_head_goes_with_its_last_query_head():
    one = change((0, 1, 2, 4))
    assert (one.kept, one.kept_kv, one.kv_of_query) == ((3, 5), (1,), (0, 0))
    lost = {layer.module: sorted(indices) for layer, _, indices in one.slices()}
    assert lost["k"] == lost["v"] == [0, 1, 2, 3]
    assert lost["q"] == lost["o"] == [*range(12), *range(16, 20)]


@pytest.mark.parametrize(
    ("gone", "even"), [((0,), False), ((0, 3), True), ((0, 1, 2), True), ((1, 4, 5), False), ((1, 2, 3, 4), True)]
)
def test_even_means_that_blocks_of_one_size_share_a_key_head(gone, even):
    assert change(gone).even is even


def test_even_asks_for_the_order_too():
    # tiled rather than repeated: as many per key head, but no block of neighbours
    assert not change((0, 1), kv_of_query=(0, 1, 0, 1, 0, 1)).even


def test_value_heads_of_a_number_of_their_own_are_refused():
    with pytest.raises(SurgeryError, match="6 query, 2 key and 3 value heads"):
        list(change((0,), n_value_heads=3).slices())


class Attention(nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        self.out = nn.Linear(24, 24)  # its widths are not stale: the slices set them
        for name, value in attributes.items():
            setattr(self, name, value)


def stale(gone, site=None, **attributes):
    one = SiteChange(site or grouped_site(), tuple(gone), site or grouped_site())
    return {found.name: found.value for found in one.stale(Attention(**attributes), "h.3")}


def test_numbers_of_heads_and_widths_are_recognised_by_value_and_name():
    found = stale((0, 3), num_heads=6, num_key_value_heads=2, num_key_value_groups=3, split_size=24, all_head_size=24)
    assert found == {"num_heads": 4, "num_key_value_groups": 2, "split_size": 16, "all_head_size": 16}


def test_what_happens_to_have_the_same_value_is_left_alone():
    names = ("layer_idx", "sliding_window", "max_position", "num_buckets", "_private", "head_dim", "block_size")
    assert stale((0, 3), **dict.fromkeys(names, 6), training=True) == {}
    assert stale((0, 3), flag=True, rate=6.0, head_size=24) == {}


def test_uneven_groups_have_no_number():
    assert stale((0,), num_key_value_groups=3) == {}


def test_sizes_that_a_forward_works_out_are_those_of_before_any_cut_too():
    now = grouped_site(n_heads=4, n_kv=4)
    first = grouped_site(n_heads=6, n_kv=6)
    pairs = SiteChange(now, (0,), first).stale_sizes()
    assert (24, 12) in pairs  # width before any cut
    assert (16, 12) in pairs  # width now
    assert (8, 4) in pairs  # 24 // 3 heads, where a head has 4
    assert all(stale != right for stale, right in pairs)
