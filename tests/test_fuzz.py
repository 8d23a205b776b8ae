"""The fuzzer finds what is wrong, says how to repeat it, and finds nothing in the operators as they are."""

import re
import sys

import fuzz
import pytest
import torch

from pruneops import ops

TOPK, KTH, UPDATE, APPLY = ops.topk_mask, ops.kth_value, ops.update_scores_, ops.apply_masks_


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


FAULTS = {
    "topk_mask": [later_ties_first, writes_around_out],
    "kth_value": [lambda scores, k, **how: KTH(scores, max(1, k - 1), **how)],
    "update_scores_": [lambda *tensors, beta, **how: UPDATE(*tensors, beta=beta * (1 + 2**-23), **how)],
    "apply_masks_": [forgets_a_nan],
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
