"""Selection over named weights against a NumPy oracle: counts, order, scopes, patterns, bounds, errors."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import as_blocks

from pruneops import ops
from pruneops.selection import apply_masks, block_scores, select_masks

PATTERNS = ["1x1", "4x1", "1x4", "2x2", "channelx1", "1xchannel"]


def prune_lowest(values, count):
    """Keep-mask of a flat score: NaN lowest, among equals the later entry goes first."""
    order = np.lexsort((-np.arange(values.size), values, ~np.isnan(values)))
    keep = np.ones(values.size, dtype=bool)
    keep[order[:count]] = False
    return keep


BLOCKS = {"4x1": (4, 1), "1x4": (1, 4), "2x2": (2, 2), "channelx1": (-1, 1), "1xchannel": (1, -1)}


def unit_scores(weight, pattern):
    values = np.abs(weight.numpy())
    return values if pattern == "1x1" else as_blocks(values, BLOCKS[pattern]).mean((1, 3), dtype=np.float64)


def integers(shape, seed=0, span=9):
    """Few distinct values: every selection has ties, and every block mean is exact."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-span, span + 1, shape, generator=generator).float()


def layers(seed=0):
    shapes = {"a": (8, 12), "b": (4, 8, 3, 3), "c": (16, 4), "d": (4, 4, 2)}
    return {name: integers(shape, seed + i) for i, (name, shape) in enumerate(shapes.items())}


def split(flat, arrays):
    ends = np.cumsum([x.size for x in arrays.values()])[:-1]
    return {n: part.reshape(x.shape) for (n, x), part in zip(arrays.items(), np.split(flat, ends), strict=True)}


def assert_same(masks, expected):
    assert list(masks) == list(expected)
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        np.testing.assert_array_equal(mask.numpy(), expected[name], err_msg=name)


@pytest.mark.parametrize("sparsity", [0, 0.1, 0.5, 0.77, 0.999])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_global(pattern, sparsity):
    weights = layers()
    units = {name: unit_scores(weight, pattern) for name, weight in weights.items()}
    flat = np.concatenate([x.reshape(-1) for x in units.values()])
    expected = split(prune_lowest(flat, int(sparsity * flat.size)), units)
    assert_same(select_masks(weights, sparsity=sparsity, pattern=pattern), expected)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_local(pattern):
    weights = layers()
    units = {name: unit_scores(weight, pattern) for name, weight in weights.items()}
    expected = {n: prune_lowest(x.reshape(-1), int(0.6 * x.size)).reshape(x.shape) for n, x in units.items()}
    assert_same(select_masks(weights, sparsity=0.6, pattern=pattern, scope="local"), expected)


@pytest.mark.parametrize("pattern", ["1x1", "4x1", "1x4", "channelx1"])
def test_row(pattern):
    weights = layers()
    expected = {}
    for name, weight in weights.items():
        units = unit_scores(weight, pattern)
        rows = units.reshape(units.shape[0], -1)
        expected[name] = np.stack([prune_lowest(row, int(0.6 * row.size)) for row in rows]).reshape(units.shape)
    assert_same(select_masks(weights, sparsity=0.6, pattern=pattern, scope="row"), expected)


def test_row_of_whole_rows_is_refused():
    with pytest.raises(ValueError, match="1xchannel"):
        select_masks(layers(), sparsity=0.5, pattern="1xchannel", scope="row")


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (4, 4)])
@pytest.mark.parametrize("scope", ["global", "local", "row"])
def test_nm_groups_along_input_channels(n, m, scope):
    weights = layers()
    expected = {}
    for name, weight in weights.items():
        moved = np.moveaxis(np.abs(weight.numpy()), 1, -1)
        keep = np.stack([prune_lowest(group, m - n) for group in moved.reshape(-1, m)]).reshape(moved.shape)
        expected[name] = np.moveaxis(keep, -1, 1)
    assert_same(select_masks(weights, sparsity=None, pattern=f"{n}:{m}", scope=scope), expected)
    assert_same(select_masks(weights, sparsity=1 - n / m if n < m else 0, pattern=f"{n}:{m}"), expected)


@pytest.mark.parametrize("metric", ["gradient", "snip", "taylor", "fisher"])
def test_metrics_with_gradients(metric):
    weights = layers()
    grads = {name: integers(weight.shape, 50) for name, weight in weights.items()}
    formula = {
        "gradient": lambda w, g: np.abs(g),
        "snip": lambda w, g: np.abs(w * g),
        "taylor": lambda w, g: (w * g) ** 2,
        "fisher": lambda w, g: g**2,
    }[metric]
    values = {n: formula(w.numpy(), grads[n].numpy()) for n, w in weights.items()}
    flat = np.concatenate([x.reshape(-1) for x in values.values()])
    masks = select_masks(weights, sparsity=0.5, metric=metric, grads=grads)
    assert_same(masks, split(prune_lowest(flat, flat.size // 2), values))


@pytest.mark.parametrize("metric", ["mask_gradient", "mask_fisher"])
def test_block_mask_metrics(metric):
    weights = layers()
    grads = {name: integers(weight.shape, 60) for name, weight in weights.items()}
    sums = {n: as_blocks((w * grads[n]).numpy(), (4, 1)).sum((1, 3)) for n, w in weights.items()}
    flat = np.concatenate([np.abs(x).reshape(-1) for x in sums.values()])
    masks = select_masks(weights, sparsity=0.5, pattern="4x1", metric=metric, grads=grads)
    assert_same(masks, split(prune_lowest(flat, flat.size // 2), sums))


def test_given_scores_replace_the_metric():
    weights = layers()
    scores = {name: integers(weight.shape, 70).abs() for name, weight in weights.items()}
    assert_same(
        select_masks(weights, sparsity=0.5, scores=scores),
        {n: m.numpy() for n, m in select_masks(scores, sparsity=0.5).items()},
    )
    grid = block_scores(scores, "4x1")
    element, block = (select_masks(weights, sparsity=0.5, pattern="4x1", scores=s) for s in (scores, grid))
    assert_same(element, {n: m.numpy() for n, m in block.items()})
    assert block["a"].shape == (2, 12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("pattern", ["1x1", "4x1", "2:4"])
def test_dtypes_and_layouts(dtype, pattern):
    weights = {name: weight.to(dtype) for name, weight in layers().items()}
    views = {name: weight.transpose(0, 1).contiguous().transpose(0, 1) for name, weight in weights.items()}
    sparsity = 0.5
    plain = select_masks(layers(), sparsity=sparsity, pattern=pattern)
    for given_weights in (weights, views):
        assert_same(
            select_masks(given_weights, sparsity=sparsity, pattern=pattern), {n: m.numpy() for n, m in plain.items()}
        )


@pytest.mark.parametrize("values", [[0.0, -0.0, 1.0, -1.0], [float("nan"), float("inf"), -float("inf"), 2.0], [3.0]])
def test_special_values_count_exactly(values):
    weights = {"a": torch.tensor(values * 4).reshape(-1, 2), "b": torch.tensor(values * 8).reshape(2, -1)}
    flat = np.concatenate([weight.abs().numpy().reshape(-1) for weight in weights.values()])
    masks = select_masks(weights, sparsity=0.5)
    assert_same(masks, split(prune_lowest(flat, flat.size // 2), {n: w.numpy() for n, w in weights.items()}))


def test_empty_inputs():
    assert select_masks({}, sparsity=0.5) == {}
    masks = select_masks({"none": torch.zeros(0, 4), "one": torch.ones(1, 2), "last": torch.zeros(0)}, sparsity=0.5)
    assert [int(mask.sum()) for mask in masks.values()] == [0, 1, 0]


def test_a_parameter_is_read_without_its_graph():
    weights = {"a": torch.nn.Parameter(integers((4, 4)))}
    for pattern in ("1x1", "4x1", "2:4"):
        assert not select_masks(weights, sparsity=0.5, pattern=pattern)["a"].requires_grad


class TestBounds:
    @staticmethod
    def oracle(units, budget, low, high):
        """Move one common threshold through the order of all units, each tensor's count clamped to its bounds."""
        flat = np.concatenate(units)
        owner = np.repeat(np.arange(len(units)), [x.size for x in units])
        order = np.lexsort((-np.arange(flat.size), flat))
        for stop in range(flat.size + 1):
            below = np.bincount(owner[order[:stop]], minlength=len(units))
            counts = np.clip(below, low, high)
            if counts.sum() == budget:
                return [prune_lowest(x, count) for x, count in zip(units, counts, strict=True)]
        return None

    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_best_selection_under_bounds(self, data):
        sizes = data.draw(st.lists(st.integers(4, 30), min_size=1, max_size=5))
        units = [
            np.array(data.draw(st.lists(st.integers(0, 12), min_size=n, max_size=n)), dtype=np.float32) for n in sizes
        ]
        sparsity = data.draw(st.integers(0, 19))
        least, most = data.draw(st.integers(0, sparsity)), data.draw(st.integers(sparsity, 20))
        budget = int(sparsity / 20 * sum(sizes))
        low = [-(-least * n // 20) for n in sizes]
        high = [most * n // 20 for n in sizes]
        call = {
            "weights": {str(i): torch.from_numpy(x) for i, x in enumerate(units)},
            "sparsity": sparsity / 20,
            "min_sparsity": least / 20,
            "max_sparsity": most / 20,
        }
        if any(a > b for a, b in zip(low, high, strict=True)) or not sum(low) <= budget <= sum(high):
            with pytest.raises(ValueError, match="bounds"):
                select_masks(**call)
            return
        expected = self.oracle(units, budget, low, high)
        assert_same(select_masks(**call), {str(i): mask for i, mask in enumerate(expected)})

    def test_total_stays_exact_and_each_layer_within(self):
        weights = {"small": integers((10, 10)) / 100, "large": integers((10, 30)), "other": integers((20, 20), 3)}
        masks = select_masks(weights, sparsity=0.5, min_sparsity=0.3, max_sparsity=0.7)
        pruned = {name: int((~mask).sum()) for name, mask in masks.items()}
        assert sum(pruned.values()) == 400
        assert pruned["small"] == 70
        assert all(0.3 <= count / masks[name].numel() <= 0.7 for name, count in pruned.items())

    def test_bounds_of_blocks(self):
        weights = {"a": integers((8, 8)) / 100, "b": integers((8, 8), 1)}
        masks = select_masks(weights, sparsity=0.5, pattern="4x1", max_sparsity=0.75)
        assert [int((~mask).sum()) for mask in masks.values()] == [12, 4]

    def test_loose_bounds_change_nothing(self):
        loose = select_masks(layers(), sparsity=0.5, min_sparsity=0.0, max_sparsity=1.0)
        assert_same(loose, {n: m.numpy() for n, m in select_masks(layers(), sparsity=0.5).items()})

    @pytest.mark.parametrize("scope", ["local", "row"])
    def test_bounds_must_hold_the_sparsity(self, scope):
        for low, high in ((0.6, None), (None, 0.4)):
            with pytest.raises(ValueError, match=r"0\.5 is outside of min_sparsity"):
                select_masks(layers(), sparsity=0.5, scope=scope, min_sparsity=low, max_sparsity=high)


class TestErrors:
    @pytest.mark.parametrize("value", [-0.1, 1.0, 1.5, float("nan")])
    @pytest.mark.parametrize("name", ["sparsity", "min_sparsity"])
    def test_range(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must be at least 0 and below 1, got {value}"):
            select_masks(layers(), **{"sparsity": 0.5, name: value})

    def test_sparsity_is_needed(self):
        with pytest.raises(ValueError, match="needs a sparsity"):
            select_masks(layers(), sparsity=None)
        with pytest.raises(TypeError, match="sparsity must be a number"):
            select_masks(layers(), sparsity="0.5")

    def test_nm_disagrees(self):
        with pytest.raises(ValueError, match=r"'2:4' gives sparsity 0\.5, got sparsity=0\.6"):
            select_masks(layers(), sparsity=0.6, pattern="2:4")

    def test_indivisible_names_the_weight(self):
        with pytest.raises(ValueError, match=re.escape("weights['odd'] has shape [6, 4], which pattern '4x1'")):
            select_masks({"odd": torch.zeros(6, 4)}, sparsity=0.5, pattern="4x1")

    def test_unknown_names(self):
        with pytest.raises(ValueError, match="scope must be one of"):
            select_masks(layers(), sparsity=0.5, scope="layer")
        for pattern in ("1x1", "4x1"):
            with pytest.raises(ValueError, match="metric must be one of"):
                select_masks(layers(), sparsity=0.5, pattern=pattern, metric="l1")

    def test_gradients(self):
        for pattern in ("1x1", "4x1"):
            with pytest.raises(ValueError, match=re.escape("grads['b']")):
                select_masks(layers(), sparsity=0.5, pattern=pattern, metric="snip", grads={"a": layers()["a"]})
        grads = layers() | {"c": torch.zeros(4, 16)}
        with pytest.raises(ValueError, match=re.escape("grads['c'] has shape [4, 16], weights['c'] has shape [16, 4]")):
            select_masks(layers(), sparsity=0.5, metric="snip", grads=grads)

    def test_scores(self):
        with pytest.raises(ValueError, match=re.escape("scores['b'] is missing")):
            select_masks(layers(), sparsity=0.5, scores={"a": layers()["a"]})
        with pytest.raises(ValueError, match=re.escape("scores['a'] has shape [3, 3], expected [8, 12] or [2, 12]")):
            select_masks(layers(), sparsity=0.5, pattern="4x1", scores=layers() | {"a": torch.zeros(3, 3)})

    def test_types(self):
        with pytest.raises(TypeError, match="weights must map names"):
            select_masks([torch.zeros(2)], sparsity=0.5)
        with pytest.raises(TypeError, match=re.escape("weights['a'] must be float32")):
            select_masks({"a": torch.zeros(2, dtype=torch.int64)}, sparsity=0.5)
        with pytest.raises(ValueError, match="has no blocks"):
            block_scores(layers(), "1x1")


class TestApply:
    @pytest.mark.parametrize("pattern", [*PATTERNS, "2:4"])
    def test_pruned_are_zero_and_kept_keep_their_bits(self, pattern):
        weights = layers() | {"t": torch.nn.Parameter(integers((12, 8)).t())}
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        masks = select_masks(weights, sparsity=0.5, pattern=pattern)
        apply_masks(weights, masks, pattern)
        for name, weight in weights.items():
            mask = masks[name]
            if pattern in BLOCKS:
                mask = ops.expand_block_mask(mask, BLOCKS[pattern], weight.shape)
            assert torch.equal(weight, torch.where(mask, before[name], 0.0))

    def test_names_must_agree(self):
        weights = layers()
        masks = select_masks(weights, sparsity=0.5)
        del masks["b"]
        with pytest.raises(ValueError, match="'b'"):
            apply_masks(weights, masks, "1x1")

    def test_a_wrong_mask_writes_nothing(self):
        weights = layers()
        masks = select_masks(weights, sparsity=0.5) | {"d": torch.ones(2, 2, dtype=torch.bool)}
        with pytest.raises(ValueError, match="masks"):
            apply_masks(weights, masks, "1x1")
        assert all(torch.equal(weight, layers()[name]) for name, weight in weights.items())
