"""What criteria refuse."""

import re

import pytest
import torch
from scored import BLOCK, ELEMENT, Config, step, train_step, with_block_masks
from torch import nn

from pruneops import CRITERIA, get_criterion


class TestErrors:
    def test_unknown_name_lists_the_known(self):
        with pytest.raises(ValueError, match=r"unknown criterion 'l1'; known are gradient, magnitude, .*snip_momentum"):
            get_criterion({"criterion_type": "l1"}, {})
        with pytest.raises(ValueError, match="unknown criterion None"):
            get_criterion({}, {})

    def test_framework(self):
        with pytest.raises(ValueError, match="'keras'"):
            get_criterion({"criterion_type": "magnitude"}, {}, framework="keras")

    @pytest.mark.parametrize("name", [*ELEMENT, *BLOCK])
    @pytest.mark.parametrize("end_step", [0, -1])
    def test_end_step(self, name, end_step):
        config = {"criterion_type": name, "end_step": end_step}
        if name == "magnitude":
            get_criterion(config, {})
            return
        with pytest.raises(ValueError, match=f"{CRITERIA[name].__name__} .* end_step > 0, got {end_step}"):
            get_criterion(config, {})

    @pytest.mark.parametrize("name", ["gradient", "snip", "snip_momentum", *BLOCK])
    def test_missing_gradient_names_the_parameter_and_writes_nothing(self, name, modules):
        del modules["tensor"]
        criterion = get_criterion({"criterion_type": name}, modules)
        train_step(modules, 0)
        step(criterion)
        before = {key: score.clone() for key, score in criterion.scores.items()}
        train_step(modules, 1)
        modules["gpt"].weight.grad = None
        with pytest.raises(ValueError, match=r"'gpt\.weight', which has none: it comes with the backward pass"):
            criterion.on_before_optimizer_step()
        modules["gpt"].weight.requires_grad_(False)
        with pytest.raises(ValueError, match=r"'gpt\.weight', which is frozen"):
            criterion.on_before_optimizer_step()
        assert all(torch.equal(score, before[key]) for key, score in criterion.scores.items())

    @pytest.mark.parametrize("name", BLOCK)
    def test_missing_mask_gradient(self, name, modules):
        modules = with_block_masks({"fc": modules["fc"]})
        criterion = get_criterion({"criterion_type": name}, modules)
        with pytest.raises(ValueError, match=r"'fc\.block_mask', which has none"):
            criterion.on_before_optimizer_step()

    @pytest.mark.parametrize("config", [{"criterion_type": name} for name in BLOCK] + [Config("snip")])
    def test_indivisible(self, config):
        if isinstance(config, Config):
            config = vars(config) | {"block_scores": True}
        with pytest.raises(ValueError, match=re.escape("pattern '4x1' does not divide 'odd' of shape [6, 4]")):
            get_criterion(config, {"odd": nn.Linear(4, 6)})

    @pytest.mark.parametrize("pattern", ["1x1", "2:4"])
    def test_pattern_without_blocks(self, pattern, modules):
        with pytest.raises(ValueError, match=f"pattern '{pattern}' has none"):
            get_criterion({"criterion_type": "snip", "block_scores": True, "pattern": pattern}, modules)

    def test_reduce(self, modules):
        with pytest.raises(ValueError, match="criterion_reduce_type must be mean, sum or max, got 'min'"):
            get_criterion({"criterion_type": "snip", "criterion_reduce_type": "min"}, modules)

    @pytest.mark.parametrize("name", ["snip_momentum", *BLOCK])
    @pytest.mark.parametrize("factor", ["alpha", "beta"])
    def test_factors(self, name, factor):
        message = f"{CRITERIA[name].__name__}: {factor} must be a number, got str"
        with pytest.raises(TypeError, match=message):
            get_criterion({"criterion_type": name, factor: "x"}, {})
        with pytest.raises(TypeError, match=message):
            CRITERIA[name]({}, {}, **{factor: "x"})

    def test_modules(self):
        with pytest.raises(TypeError, match="modules must map names"):
            get_criterion({"criterion_type": "magnitude"}, [nn.Linear(2, 2)])
        with pytest.raises(TypeError, match=re.escape("modules['act'] must be a tensor or have a weight, got ReLU")):
            get_criterion({"criterion_type": "magnitude"}, {"act": nn.ReLU()})
