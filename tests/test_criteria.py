"""Criteria against the eager formulas of Intel Neural Compressor, written out here step by step."""

import io
import pickle
import re
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from modules import Conv1D
from oracle import as_blocks
from torch import nn

from pruneops import CRITERIA, PruningCriterion, criterion_from_metric, get_criterion, register_criterion

ELEMENT = ("magnitude", "gradient", "snip", "snip_momentum")
BLOCK = ("snip_momentum_block", "retrain_free")
STEPS = 20


@pytest.fixture
def modules():
    torch.manual_seed(0)
    return {
        "fc": nn.Linear(12, 8),
        "conv": nn.Conv2d(4, 8, 3),
        "tensor": nn.Parameter(torch.randn(16, 5)),
        "gpt": Conv1D(8, 6),
    }


def weight_of(value):
    return value if isinstance(value, torch.Tensor) else value.weight


def train_step(modules, seed):
    """New weights and gradients, over many orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    for value in modules.values():
        weight = weight_of(value)
        scale = torch.exp(8 * torch.randn(weight.shape, generator=generator))
        weight.data = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        weight.grad = (torch.randn(weight.shape, generator=generator) * scale).to(weight.dtype)


def step(criterion):
    criterion.on_step_begin()
    criterion.on_before_optimizer_step()
    criterion.on_after_optimizer_step()


def eager(name, score, w, g, alpha=0.9, beta=1.0):
    """One step of the criterion, in the order in which INC computes it."""
    if name == "magnitude":
        return torch.abs(w)
    if name == "gradient":
        return torch.abs(g)
    if name == "snip":
        return torch.abs(w * g)
    return score * alpha + beta * torch.abs(w * g)


def out_by_in(name, x):
    return x.T if name == "gpt" else x


def with_block_masks(modules, mask_shape=(2, 12)):
    modules["fc"].block_mask = nn.Parameter(torch.ones(mask_shape))
    return modules


@pytest.mark.parametrize("name", ELEMENT)
def test_float32_is_bit_identical_to_the_eager_formula(name, modules):
    criterion = get_criterion({"criterion_type": name, "end_step": STEPS}, modules)
    expected = {key: torch.zeros_like(weight_of(value)) for key, value in modules.items()}
    for seed in range(STEPS):
        train_step(modules, seed)
        step(criterion)
        for key, value in modules.items():
            weight = weight_of(value)
            expected[key] = eager(name, expected[key], weight.detach(), weight.grad)
            assert criterion.scores[key].dtype == torch.float32
            assert torch.equal(criterion.scores[key], expected[key]), key
            assert not criterion.scores[key].requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ELEMENT)
def test_half_precision_weights_have_float32_scores(name, dtype, modules):
    modules = {key: weight_of(value).detach().to(dtype) for key, value in modules.items()}
    criterion = get_criterion({"criterion_type": name}, modules)
    expected = {key: torch.zeros(value.shape) for key, value in modules.items()}
    for seed in range(STEPS):
        train_step(modules, seed)
        step(criterion)
        for key, value in modules.items():
            expected[key] = eager(name, expected[key], value.float(), value.grad.float())
            assert torch.equal(criterion.scores[key], expected[key])


@pytest.mark.parametrize("name", ELEMENT)
def test_low_memory_is_one_rounding_away(name, modules):
    criterion = get_criterion({"criterion_type": name, "low_memory_usage": True}, modules)
    before = {key: torch.zeros(weight_of(value).shape) for key, value in modules.items()}
    for seed in range(STEPS):
        train_step(modules, seed)
        step(criterion)
        for key, value in modules.items():
            score = criterion.scores[key]
            exact = eager(name, before[key], weight_of(value).detach(), weight_of(value).grad)
            assert score.dtype == torch.bfloat16
            assert torch.equal(score, exact.bfloat16())
            before[key] = score.float()


def test_products_that_underflow_in_half_precision_still_rank():
    weight = torch.tensor([[1e-4, 2e-4, 3e-4, 4e-4]], dtype=torch.float16)
    weight.grad = torch.full_like(weight, 1e-4)
    criterion = get_criterion({"criterion_type": "snip"}, {"w": weight})
    step(criterion)
    assert (criterion.scores["w"].diff() > 0).all()


@pytest.mark.parametrize("name", ["snip_momentum", "snip_momentum_block", "retrain_free"])
def test_alpha_and_beta_are_arguments_and_config_keys(name, modules):
    del modules["tensor"], modules["gpt"]
    by_config = CRITERIA[name](modules, {"alpha": 0.5, "beta": 3.0})
    by_argument = CRITERIA[name](modules, {"alpha": 0.1}, alpha=0.5, beta=3.0)
    default = CRITERIA[name](modules, {})
    assert (by_argument.alpha, by_argument.beta) == (by_config.alpha, by_config.beta) == (0.5, 3.0)
    assert (default.alpha, default.beta) == (1.0 if name == "retrain_free" else 0.9, 1.0)
    for seed in range(3):
        train_step(modules, seed)
        step(by_config)
        step(by_argument)
        step(default)
    assert torch.equal(by_config.scores["fc"], by_argument.scores["fc"])
    assert not torch.equal(by_config.scores["fc"], default.scores["fc"])


@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
@pytest.mark.parametrize("name", ELEMENT)
@pytest.mark.parametrize("pattern", ["4x1", "2x2"])
def test_block_scores(name, reduce, pattern, modules):
    del modules["tensor"]
    block = tuple(map(int, pattern.split("x")))
    config = {"criterion_type": name, "block_scores": True, "pattern": pattern, "criterion_reduce_type": reduce}
    criterion = get_criterion(config, modules)
    expected = dict.fromkeys(modules, 0.0)
    for seed in range(5):
        train_step(modules, seed)
        step(criterion)
        for key, module in modules.items():
            w, g = (out_by_in(key, x.detach().double().numpy()) for x in (module.weight, module.weight.grad))
            value = {"magnitude": np.abs(w), "gradient": np.abs(g)}.get(name, np.abs(w * g))
            value = getattr(as_blocks(value, block), reduce)((1, 3))
            expected[key] = (0.9 * expected[key] if name == "snip_momentum" else 0) + value
            assert criterion.scores[key].shape == expected[key].shape
            np.testing.assert_allclose(criterion.scores[key].numpy(), expected[key], rtol=1e-5)


@pytest.mark.parametrize("low_memory", [False, True])
def test_snip_momentum_block_reads_the_mask_gradient(low_memory, modules):
    del modules["tensor"]
    criterion = get_criterion(
        {"criterion_type": "snip_momentum_block", "low_memory_usage": low_memory}, with_block_masks(modules)
    )
    storage = {key: score.data_ptr() for key, score in criterion.scores.items()}
    masked, conv, gpt = torch.zeros(2, 12), 0.0, 0.0
    for seed in range(STEPS):
        train_step(modules, seed)
        mask = modules["fc"].block_mask
        mask.grad = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed))
        step(criterion)
        masked = (masked * 0.9 + 1.0 * torch.abs(mask.grad)).to(criterion.scores["fc"].dtype).float()
        sums = {
            key: as_blocks(out_by_in(key, (x.weight.detach().double() * x.weight.grad.double()).numpy()), (4, 1))
            for key, x in modules.items()
        }
        conv = 0.9 * conv + np.abs(sums["conv"].sum((1, 3)))
        gpt = 0.9 * gpt + np.abs(sums["gpt"].sum((1, 3)))
        assert torch.equal(criterion.scores["fc"].float(), masked)
    tolerance = {"rtol": 0.05 if low_memory else 1e-4, "atol": 1e-3}
    np.testing.assert_allclose(criterion.scores["conv"].float().numpy(), conv, **tolerance)
    np.testing.assert_allclose(criterion.scores["gpt"].float().numpy(), gpt, **tolerance)
    assert storage == {key: score.data_ptr() for key, score in criterion.scores.items()}


def test_retrain_free_collects_and_freezes(modules):
    del modules["tensor"]
    criterion = get_criterion({"criterion_type": "retrain_free"}, with_block_masks(modules))
    mask = modules["fc"].block_mask
    assert not modules["fc"].weight.requires_grad
    assert not modules["fc"].bias.requires_grad
    assert mask.requires_grad
    assert modules["conv"].weight.requires_grad
    score, conv = torch.zeros(2, 12), 0.0
    grads = []
    for seed in range(STEPS):
        train_step(modules, seed)
        modules["fc"].weight.grad = None
        grads.append(torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed)))
        mask.grad = grads[-1].clone()
        step(criterion)
        mask.grad.zero_()  # what is collected must not be the live gradient
        score = score + grads[-1].pow(2)
        assert torch.equal(criterion.scores["fc"], score)
        product = (modules["conv"].weight.detach().double() * modules["conv"].weight.grad.double()).numpy()
        signed = as_blocks(product, (4, 1)).sum((1, 3))
        conv = conv + signed**2
        np.testing.assert_allclose(criterion.collected_grads["conv"][-1].numpy(), signed, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(criterion.scores["conv"].numpy(), conv, rtol=1e-4)
    assert [len(x) for x in criterion.collected_grads.values()] == [STEPS] * 3
    assert all(torch.equal(a, b) for a, b in zip(criterion.collected_grads["fc"], grads, strict=True))
    assert all(grad.device.type == "cpu" for grad in criterion.collected_grads["fc"])


@pytest.mark.parametrize("name", BLOCK)
def test_scores_need_no_gradients_collected(name, modules):
    """They are those of a criterion that collects; nothing else is kept, nor saved."""
    del modules["tensor"]
    modules = with_block_masks(modules)
    collecting, other = (get_criterion({"criterion_type": name, "collect_grads": x}, modules) for x in (True, False))
    for seed in range(2):
        train_step(modules, seed)
        modules["fc"].block_mask.grad = torch.ones_like(modules["fc"].block_mask)
        step(collecting)
        step(other)
    assert all(torch.equal(score, other.scores[key]) for key, score in collecting.scores.items())
    assert other.state_dict().keys() == {"scores"}
    assert not any(getattr(other, "collected_grads", {}).values())
    resumed = get_criterion({"criterion_type": name, "collect_grads": False}, modules)
    resumed.load_state_dict(other.state_dict())
    assert all(torch.equal(score, resumed.scores[key]) for key, score in other.scores.items())


def test_an_overflow_collects_nothing(modules):
    del modules["tensor"]
    criterion = get_criterion({"criterion_type": "retrain_free"}, modules)
    train_step(modules, 0)
    criterion.grad_scale, criterion.found_inf = torch.tensor(8.0), torch.tensor(1.0)
    step(criterion)
    assert not any(criterion.collected_grads.values())
    assert not any(score.any() for score in criterion.scores.values())
    criterion.found_inf = torch.tensor(0.0)
    step(criterion)
    for key, (collected,) in criterion.collected_grads.items():
        torch.testing.assert_close(criterion.scores[key], collected.square())
    plain = get_criterion({"criterion_type": "retrain_free"}, modules)
    step(plain)
    for key, (collected,) in plain.collected_grads.items():
        assert torch.equal(criterion.collected_grads[key][0], collected / 8)


def test_block_masks_alone_need_no_blocks_of_weights():
    """All modules have masks of their own shapes: the pattern is not read."""
    for name in BLOCK:
        module = nn.Linear(4, 4)
        module.block_mask = nn.Parameter(torch.ones(3, 5))
        criterion = get_criterion({"criterion_type": name, "pattern": "1x1"}, {"fc": module})
        module.block_mask.grad = torch.full((3, 5), -2.0)
        step(criterion)
        assert torch.equal(criterion.scores["fc"], torch.full((3, 5), 4.0 if name == "retrain_free" else 2.0))


def test_the_block_mask_gradient_is_the_block_sum_of_w_times_g():
    """Through autograd: a mask that multiplies the weight has the gradient that the criterion computes without it."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 8, bias=False)
    mask = torch.ones(2, 6, requires_grad=True)
    weight = layer.weight * mask.repeat_interleave(4, 0)
    (torch.randn(3, 6) @ weight.t()).square().sum().backward()
    criterion = get_criterion({"criterion_type": "snip_momentum_block", "pattern": "4x1"}, {"fc": layer})
    step(criterion)
    torch.testing.assert_close(criterion.scores["fc"], mask.grad.abs())


@pytest.mark.parametrize("name", [*ELEMENT, *BLOCK])
def test_scores_keep_their_storage(name, modules):
    del modules["tensor"]
    criterion = get_criterion({"criterion_type": name}, modules)
    train_step(modules, 0)
    step(criterion)
    first = {key: (score, score.data_ptr()) for key, score in criterion.scores.items()}
    train_step(modules, 1)
    step(criterion)
    assert {key: (score, score.data_ptr()) for key, score in criterion.scores.items()} == first


@pytest.mark.parametrize(("name", "hook"), [("magnitude", "on_step_begin"), ("snip", "on_before_optimizer_step")])
def test_hooks_score_at_their_moment_only(name, hook, modules):
    criterion = get_criterion({"criterion_type": name}, modules)
    train_step(modules, 0)
    for other in {"on_step_begin", "on_before_optimizer_step", "on_after_optimizer_step"} - {hook}:
        getattr(criterion, other)()
    assert criterion.scores == {}
    getattr(criterion, hook)()
    assert list(criterion.scores) == list(modules)


@pytest.mark.parametrize("name", [*ELEMENT, *BLOCK])
def test_state_goes_on_where_it_stopped(name, modules):
    del modules["tensor"]
    config = {"criterion_type": name}
    straight, first = get_criterion(config, modules), get_criterion(config, modules)
    for seed in range(2):
        train_step(modules, seed)
        step(straight)
        step(first)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = get_criterion(config, modules)
    storage = {key: score.data_ptr() for key, score in resumed.scores.items()}
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert all(resumed.scores[key].data_ptr() == pointer for key, pointer in storage.items())
    train_step(modules, 2)
    step(straight)
    step(resumed)
    assert all(torch.equal(resumed.scores[key], score) for key, score in straight.scores.items())
    if name == "retrain_free":
        assert [len(x) for x in resumed.collected_grads.values()] == [3, 3, 3]


def test_a_state_that_does_not_fit_changes_nothing(modules):
    criterion = get_criterion({"criterion_type": "snip_momentum"}, modules)
    train_step(modules, 0)
    step(criterion)
    before = {key: score.clone() for key, score in criterion.scores.items()}
    zeros = {key: torch.zeros_like(score) for key, score in before.items()}
    with pytest.raises(ValueError, match=re.escape("score 'gpt' has shape [2, 2], here [6, 8]")):
        criterion.load_state_dict({"scores": zeros | {"gpt": torch.zeros(2, 2)}})
    with pytest.raises(ValueError, match="differ in 'conv', 'extra'"):
        criterion.load_state_dict({"scores": {k: v for k, v in zeros.items() if k != "conv"} | {"extra": zeros["fc"]}})
    assert all(torch.equal(score, before[key]) for key, score in criterion.scores.items())


def test_state_from_before_the_first_step(modules):
    criterion = get_criterion({"criterion_type": "magnitude"}, modules)
    empty = criterion.state_dict()
    step(criterion)
    criterion.load_state_dict(empty)
    assert criterion.scores == {}


@dataclass
class Config:
    criterion_type: str = "snip_momentum"
    alpha: float = 0.5
    end_step: int = 10
    low_memory_usage: bool = True


@pytest.mark.parametrize(
    "config", [Config(), vars(Config()), SimpleNamespace(**vars(Config()))], ids=["dataclass", "mapping", "object"]
)
def test_config_kinds(config, modules):
    criterion = get_criterion(config, modules)
    assert type(criterion) is CRITERIA["snip_momentum"]
    assert (criterion.alpha, criterion.beta) == (0.5, 1.0)
    assert criterion.scores["fc"].dtype == torch.bfloat16


def test_registered_criterion(modules):
    @register_criterion("test_taylor")
    class Taylor(PruningCriterion):
        def on_before_optimizer_step(self):
            self.update_scores("taylor")

    try:
        criterion = get_criterion({"criterion_type": "test_taylor"}, modules)
        assert type(criterion) is Taylor
        train_step(modules, 0)
        step(criterion)
        assert torch.equal(criterion.scores["fc"], (modules["fc"].weight * modules["fc"].weight.grad).square())
    finally:
        del CRITERIA["test_taylor"]


@pytest.mark.parametrize("name", ["snip", "snip_momentum", *BLOCK])
def test_a_missing_gradient_counts_as_zeros_where_that_is_asked_for(name, modules):
    del modules["tensor"]
    config = {"criterion_type": name, "missing_is_zero": True, "collect_grads": False}
    lenient, other = get_criterion(config, modules), get_criterion(config, modules)
    for seed in range(3):
        train_step(modules, seed)
        modules["gpt"].weight.grad = None
        step(lenient)
        modules["gpt"].weight.grad = torch.zeros_like(modules["gpt"].weight)
        step(other)
    assert all(torch.equal(score, other.scores[key]) for key, score in lenient.scores.items())
    assert lenient.scores["fc"].any()
    modules["gpt"].weight.requires_grad_(False)
    modules["gpt"].weight.grad = None
    with pytest.raises(ValueError, match=r"'gpt\.weight', which is frozen"):
        lenient.on_before_optimizer_step()


def test_scores_of_entries_are_loaded_where_others_have_blocks(modules):
    """By a class that assigns its scores; what is there already says which shape it has."""
    config = {"criterion_type": "snip", "block_scores": True}
    del modules["tensor"]
    entries = {key: torch.rand_like(module.weight) for key, module in modules.items()}
    criterion = get_criterion(config, modules)
    criterion.load_state_dict({"scores": entries})
    assert all(torch.equal(criterion.scores[key], score) for key, score in entries.items())
    train_step(modules, 0)
    blocks = get_criterion(config, modules)
    step(blocks)
    with pytest.raises(ValueError, match=re.escape("score 'fc' has shape [8, 12], here [2, 12]")):
        blocks.load_state_dict({"scores": entries})
    with pytest.raises(ValueError, match=re.escape("score 'fc' has shape [2, 12], here [8, 12]")):
        criterion.load_state_dict(blocks.state_dict())


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


class Derived(CRITERIA["snip"]):
    """A class that pickle finds by itself."""


@pytest.mark.parametrize("metric", ["magnitude", "snip", "mask_fisher"])
def test_criteria_from_a_metric_are_pickled(metric):
    layer = nn.Linear(8, 8)
    layer.weight.grad = torch.randn(8, 8)
    made = criterion_from_metric("test_made", metric=metric, alpha=0.5)
    try:
        criterion = made({"fc": layer}, {"alpha": 0.25})
        step(criterion)
        loaded = pickle.loads(pickle.dumps(criterion))
        assert type(loaded) is made
        loaded.modules["fc"].weight.grad = layer.weight.grad
        step(criterion)
        step(loaded)
        assert torch.equal(criterion.scores["fc"], loaded.scores["fc"])
        data = pickle.dumps(criterion)
    finally:
        del CRITERIA["test_made"]
    with pytest.raises(AttributeError, match="Can't get attribute 'test_made'"):
        pickle.loads(data)
    assert type(pickle.loads(pickle.dumps(Derived({}, {})))) is Derived


@pytest.mark.parametrize("name", [*ELEMENT, *BLOCK])
def test_no_modules(name):
    criterion = get_criterion({"criterion_type": name}, {})
    step(criterion)
    assert criterion.scores == {}


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
