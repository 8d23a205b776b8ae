"""The fuzzer finds what is wrong, says how to repeat it, and finds nothing in the operators as they are."""

import re
import sys

import fuzz
import pytest
import torch

from pruneops import ops

#: As they are, before a fault is put into one.
RIGHT = {name: getattr(ops, name) for name in ops.__all__}
TOPK, KTH, UPDATE, APPLY = (RIGHT[name] for name in ("topk_mask", "kth_value", "update_scores_", "apply_masks_"))


def later_ties_first(scores, **how):
    if how.get("metric") or how.get("packed") or how.get("out"):
        return TOPK(scores, **how)
    masks = TOPK([score.flip(tuple(range(score.dim()))) for score in scores[::-1]], **how)
    return [mask.flip(tuple(range(mask.dim()))) for mask in masks[::-1]]


def writes_around_out(scores, **how):
    masks = TOPK(scores, **how)
    for mask in how.get("out") or ():
        torch.as_strided(mask, (mask.untyped_storage().nbytes(),), (1,), 0)[:1].zero_()
    return masks


def forgets_a_nan(tensors, masks):
    for x in APPLY(tensors, masks):
        x.nan_to_num_()


def sets_unused_bits(mask):
    packed = RIGHT["pack_mask"](mask)
    packed[-1:] |= 128
    return packed


FAULTS = {
    "topk_mask": [later_ties_first, writes_around_out],
    "kth_value": [lambda scores, k, **how: KTH(scores, max(1, k - 1), **how)],
    "update_scores_": [lambda *tensors, beta, **how: UPDATE(*tensors, beta=beta * (1 + 2**-23), **how)],
    "update_block_scores_": [lambda *x, reduce, **how: RIGHT["update_block_scores_"](*x, reduce="mean", **how)],
    "block_reduce": [lambda score, block, reduce, **how: RIGHT["block_reduce"](score, block, "mean", **how)],
    "count_digits": [lambda scores, prefix, round, **how: RIGHT["count_digits"](scores, 0 * prefix, round, **how)],
    "expand_block_mask": [lambda mask, block, shape: RIGHT["expand_block_mask"](mask.flip(1), block, shape)],
    "apply_masks_": [forgets_a_nan],
    "pack_mask": [sets_unused_bits],
    "unpack_mask": [lambda packed, shape: RIGHT["unpack_mask"](packed.flip(0), shape)],
    "prune_by_importance": [lambda *x, order, **how: RIGHT["prune_by_importance"](*x, **how)],
}


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["fuzz.py", *map(str, arguments)])
    fuzz.main()


@pytest.fixture(autouse=True)
def _own_threads(threads):
    """The number of threads is put back."""


def test_no_mismatch(monkeypatch, capsys):
    run(monkeypatch, "--seed", 0, "--cases", 300)
    assert "300 cases, no mismatch" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "fault"), [(name, fault) for name, faults in FAULTS.items() for fault in faults])
def test_a_fault_is_found_and_repeated(monkeypatch, name, fault):
    monkeypatch.setattr(ops, name, fault)
    with pytest.raises(SystemExit, match="MISMATCH") as found:
        run(monkeypatch, "--seed", 0, "--cases", 2000)
    command = re.search(r"fuzz.py (--device.*)", str(found.value))[1]
    with pytest.raises(SystemExit, match="MISMATCH"):
        run(monkeypatch, *command.split())
    monkeypatch.undo()
    run(monkeypatch, *command.split())
