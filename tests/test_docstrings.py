"""Examples in docstrings run as they are written; a name that they take for granted is one of ``GIVEN``."""

import doctest
import importlib
import pkgutil
from unittest.mock import patch

import pytest
import torch
from torch import nn

import pruneops
from pruneops import CRITERIA, integrations, ops
from pruneops.gradient_sensitivity import PRUNERS

#: Packages that an adapter serves, which may be missing.
SERVED = ("accelerate", "neural_compressor", "torch_pruning", "transformers")
GIVEN = {"torch": torch, "nn": nn, "ops": ops, "pruneops": pruneops}


def modules():
    """The names of all modules of the package but those that run when they are imported."""
    found = (module.name for module in pkgutil.walk_packages(pruneops.__path__, "pruneops."))
    return ["pruneops", *(name for name in found if not name.endswith("__main__") and "_C" not in name)]


@pytest.mark.parametrize("name", modules())
def test_examples(name, tmp_path, monkeypatch):
    parent, _, last = name.rpartition(".")
    if parent == integrations.__name__ and last in SERVED:
        pytest.importorskip(last)
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    with patch.dict(CRITERIA), patch.dict(PRUNERS):  # what an example registers goes again
        assert doctest.testmod(module, extraglobs=GIVEN, optionflags=doctest.ELLIPSIS).failed == 0


@pytest.mark.parametrize("name", sorted({*ops.__all__, *pruneops.__all__} - {"CRITERIA", "__version__", "ops"}))
def test_every_public_name_has_an_example(name):
    documented = getattr(ops, name, None) or getattr(pruneops, name)
    assert any(test.examples for test in doctest.DocTestFinder(recurse=False).find(documented))
