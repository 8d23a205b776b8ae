"""Criteria against the eager formulas of Intel Neural Compressor, written out step by step."""

import numpy as np
import pytest
import torch
from oracle import as_blocks
from scored import BLOCK, ELEMENT, STEPS, eager, out_by_in, step, train_step, weight_of, with_block_masks
from torch import nn

from pruneops import CRITERIA, get_criterion


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
