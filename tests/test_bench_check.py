"""The check that a machine with a GPU starts with: it passes here, and fails where an operator is wrong."""

import torch

from bench import check
from pruneops import ops


def test_every_operator_agrees_with_the_reference(capsys):
    assert check.main(["--entries", "20000"]) == 0
    assert capsys.readouterr().out == "108 of 108 checks on cpu agree with the reference\n"


def test_a_wrong_operator_is_named(monkeypatch, capsys):
    right, every = ops.nm_mask, check.checks

    def wrong(score, n, m):
        mask = right(score, n, m)
        return mask if ops.select.OPS is check._library else ~mask

    monkeypatch.setattr(ops, "nm_mask", wrong)
    monkeypatch.setattr(check, "checks", lambda n: [(name, f) for name, f in every(n) if name == "nm_mask 2:4"])
    assert check.main([]) == 1
    assert "nm_mask 2:4: results [0, 1] differ from the reference" in capsys.readouterr().out


def test_the_sign_of_a_zero_is_compared_and_the_payload_of_a_nan_is_not():
    zero, nan = torch.zeros(2), torch.tensor([0x7FC00000, -1], dtype=torch.int32).view(torch.float32)
    assert not check.same(zero, torch.tensor([0.0, -0.0]))
    assert check.same(nan, nan.flip(0))
    assert not check.same(nan, zero)
