"""Calls, names and constructors as in Neural Compressor, without it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracle import as_blocks
from scored import ELEMENT, eager, step, train_step
from torch import nn

from pruneops import CRITERIA, get_criterion


class TestAsInNeuralCompressor:
    """Its calls, names and constructors, without it."""

    def pattern(self, **blocks):
        """What its block patterns from 2.3 on have, as far as criteria read it."""
        return SimpleNamespace(
            block_size={key: list(x) for key, x in blocks.items()}, keep_mask_layers={}, invalid_layers=[],
            reduce_score=lambda score, key, force=False: score,
        )  # fmt: skip

    @pytest.mark.parametrize("name", ELEMENT)
    def test_a_pattern_that_reduces_scores(self, name, modules):
        modules = {key: modules[key] for key in ("fc", "conv")}
        config = {"criterion_type": name, "end_step": 5, "low_memory_usage": False, "pattern": "4x1"}
        criterion = get_criterion(config, modules, self.pattern(fc=(4, 1), conv=(8, 1)))
        again = get_criterion(config=config, modules=modules, pattern=self.pattern(fc=(4, 1), conv=(8, 1)))
        train_step(modules, 0)
        step(criterion)
        step(again)
        for key, block in (("fc", 4), ("conv", 8)):
            w, g = modules[key].weight.detach().double().numpy(), modules[key].weight.grad.double().numpy()
            value = {"magnitude": np.abs(w), "gradient": np.abs(g)}.get(name, np.abs(w * g))
            expected = as_blocks(value, (block, 1)).mean((1, 3))
            np.testing.assert_allclose(criterion.scores[key].numpy(), expected, rtol=1e-5)
            assert torch.equal(criterion.scores[key], again.scores[key])

    def test_a_pattern_that_does_not(self, modules):
        criterion = get_criterion({"criterion_type": "snip", "pattern": "2:4"}, modules, SimpleNamespace())
        train_step(modules, 0)
        step(criterion)
        assert torch.equal(criterion.scores["fc"], eager("snip", None, modules["fc"].weight, modules["fc"].weight.grad))

    @pytest.mark.parametrize("name", ["block_mask", "retrain_free"])
    def test_block_masks(self, name, modules):
        modules = {"fc": modules["fc"]}
        masks = {"fc": nn.Parameter(torch.ones(2, 12))}
        config = {"criterion_type": name, "end_step": 5}
        criterion = get_criterion(modules=modules, config=config, pattern=self.pattern(fc=(4, 1)), masks=masks)
        masks["fc"].grad = torch.randn(2, 12)
        criterion.on_before_optimizer_step(masks)
        expected = masks["fc"].grad.square() if name == "retrain_free" else masks["fc"].grad.abs()
        assert torch.equal(criterion.scores["fc"], expected)

    def test_a_framework_by_position_or_name(self, modules):
        for arguments, names in ((("pytorch",), {}), ((), {"framework": "pytorch"})):
            assert get_criterion({"criterion_type": "snip"}, modules, *arguments, **names).framework == "pytorch"
        with pytest.raises(ValueError, match="framework must be 'pytorch', got 'keras'"):
            get_criterion({"criterion_type": "snip"}, modules, "keras")

    def test_names_of_all_versions(self):
        assert type(get_criterion({"criterion_type": "block_mask"}, {})) is CRITERIA["snip_momentum_block"]
        assert "block_mask" not in CRITERIA

    def test_a_module_dict(self, modules):
        del modules["tensor"]
        held = nn.ModuleDict(modules)
        criterion, other = (get_criterion({"criterion_type": "snip_momentum"}, x) for x in (held, modules))
        train_step(modules, 0)
        step(criterion)
        step(other)
        assert all(torch.equal(score, criterion.scores[key]) for key, score in other.scores.items())
        criterion.load_state_dict(other.state_dict())

    def test_a_constructor_with_a_pattern(self, modules, monkeypatch):
        class Own(CRITERIA["snip_momentum"]):
            def __init__(self, modules, config, pattern):
                super().__init__(modules, config, pattern)

        monkeypatch.setitem(CRITERIA, "test_own", Own)
        config = {"criterion_type": "test_own"}
        assert type(get_criterion(config, modules)) is Own
        modules = {"fc": modules["fc"]}
        assert isinstance(get_criterion(config, modules, self.pattern(fc=(4, 1))), Own)
