"""Structure found in weights, and the histogram of magnitudes, against plain NumPy."""

import numpy as np
import pytest
import torch

from pruneops.inspection import BINS_PER_DECADE, DECADES, count_zeros, find_structure, magnitude_histogram

SHAPE = (48, 96)


def dense(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).uniform(0.5, 1.5, shape).astype(np.float32)


def zero_blocks(n, m, share=0.5, shape=SHAPE):
    """A dense matrix in which a random share of its n x m blocks is zero."""
    rng = np.random.default_rng(1)
    grid = rng.random((shape[0] // n, shape[1] // m)) >= share
    return dense(shape) * np.kron(grid, np.ones((n, m), np.float32)).astype(np.float32)


def zero_nm(n, m, shape=SHAPE):
    """A dense matrix with exactly n entries left in each group of m, at random places."""
    rng = np.random.default_rng(2)
    order = rng.random((shape[0], shape[1] // m, m)).argsort(-1)
    return dense(shape) * (order < n).reshape(shape)


def find(array):
    return find_structure(torch.from_numpy(np.ascontiguousarray(array)))


def test_dense_weight_has_no_structure():
    found = find(dense())
    assert (found.zeros, found.numel, found.sparsity, found.nm, found.block) == (0, 48 * 96, 0.0, [], None)


def test_scattered_zeros_have_no_structure():
    found = find(dense() * (np.random.default_rng(3).random(SHAPE) < 0.5))
    assert found.nm == []
    assert found.block is None


@pytest.mark.parametrize("block", [(4, 1), (1, 8), (2, 2), (3, 5), (16, 1), (6, 4)])
def test_block(block):
    shape = (48, 100) if block[1] == 5 else SHAPE
    array = zero_blocks(*block, shape=shape)
    found = find(array)
    assert found.zeros == int((array == 0).sum())
    assert found.block == f"{block[0]}x{block[1]}"


def test_the_largest_block_is_reported():
    array = dense()
    array[0:24, 0:32] = 0
    assert find(array).block == "24x32"


def test_whole_channels():
    assert find(zero_blocks(48, 1)).block == "channelx1"
    assert find(zero_blocks(1, 96)).block == "1xchannel"


def test_block_at_an_unaligned_place_does_not_hold():
    array = dense()
    array[1:5, 0] = 0
    assert find(array).block is None


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (2, 8), (5, 16)])
def test_nm(n, m):
    assert find(zero_nm(n, m)).nm == [f"{n}:{m}"]


def test_nm_reports_each_pattern_that_says_more():
    group = np.array([1, 1, 0, 0, 1, 0, 0, 0], np.float32)
    assert find(np.tile(group, (4, 6))).nm == ["2:4", "3:8"]


def test_nm_needs_whole_groups():
    assert find(zero_nm(1, 2)[:, :94]).nm == ["1:2"]


def test_conv_weight_has_its_groups_along_the_input_channels():
    array = zero_nm(2, 4, (8 * 9, 16)).reshape(8, 3, 3, 16).transpose(0, 3, 1, 2)
    assert find(array).nm == ["2:4"]


def test_a_weight_of_zeros_is_one_block():
    found = find(np.zeros((6, 10), np.float32))
    assert (found.block, found.sparsity) == ("6x10", 1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_and_negative_zero(dtype):
    weight = torch.from_numpy(zero_nm(2, 4)).to(dtype)
    assert find_structure(-weight) == find_structure(weight)


def test_transposed_view():
    weight = torch.from_numpy(zero_nm(2, 4))
    assert find_structure(weight.t().contiguous().t()) == find_structure(weight)


def test_empty_and_one_dimensional():
    assert find_structure(torch.zeros(0, 4)).sparsity == 0.0
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        find_structure(torch.ones(4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_zeros_are_counted_without_structure(dtype):
    """A stack of experts in which 2:4 holds along its last dimension, and blocks of whole experts as of a Conv1d."""
    array = zero_nm(2, 4).reshape(4, 12, 96)
    array[:, 0] = 0
    weight = torch.from_numpy(array).to(dtype)
    weight[0, 1, 0], weight[0, 1, 1] = -0.0, torch.nan
    kept = weight.double().numpy() != 0
    found = count_zeros(weight)
    assert (found.zeros, found.numel, found.nm, found.block) == (int((~kept).sum()), 4 * 12 * 96, [], None)


def test_histogram_counts_each_entry_once():
    rng = np.random.default_rng(4)
    array = (10.0 ** rng.uniform(-7.9, 1.9, 5000)).astype(np.float32)
    edges = np.linspace(*DECADES, (DECADES[1] - DECADES[0]) * BINS_PER_DECADE + 1)
    array = array[np.abs(np.log10(array)[:, None] - edges).min(1) > 1e-5]
    expected, _ = np.histogram(np.log10(array), edges)
    signed = np.concatenate([-array, [0.0, -0.0, np.nan, np.inf]]).astype(np.float32)
    assert magnitude_histogram(torch.from_numpy(signed)).tolist() == expected.tolist()


def test_histogram_clamps_to_its_ends():
    counts = magnitude_histogram(torch.tensor([1e-30, 1e30, 0.0]))
    assert (counts[0], counts[-1], counts.sum()) == (1, 1, 2)
