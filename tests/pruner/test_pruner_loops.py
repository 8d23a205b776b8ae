"""The loops that people write: mixed precision, accumulation, clipping, compiled models, every kind of optimizer."""

import copy

import pytest
import torch
from torch import nn
from training import ENTRIES, Model, batch, loss_of, train, weights

from pruneops.pruner import Pruner

SETTINGS = {"pattern": "1x1", "sparsity": 0.6, "end_step": 6, "frequency": 1}


def zeros(model):
    return sum(int((weight == 0).sum()) for weight in weights(model).values())


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
        lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
        lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
        lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9),
        lambda p: torch.optim.Adagrad(p, lr=1e-2),
    ],
    ids=["sgd", "adamw-foreach", "adamw-fused", "amsgrad", "rmsprop", "adagrad"],
)
@pytest.mark.parametrize("mask_state", [False, True])
def test_optimizers(make, mask_state):
    model = Model()
    optimizer = make(model.parameters())
    pruner = Pruner(model, optimizer, mask_optimizer_state=mask_state, mask_gradients=mask_state, **SETTINGS)
    train(model, optimizer, 8)
    assert zeros(model) == int(0.6 * ENTRIES)
    pruned = ~pruner.masks["fc"]
    state = [x for x in optimizer.state[model.fc.weight].values() if x.shape == model.fc.weight.shape]
    assert state
    assert all(bool((x[pruned] == 0).all()) for x in state) or not mask_state
    assert any(bool((x[~pruned] != 0).any()) for x in state)


def test_gradients_of_pruned_weights_are_hidden_from_the_optimizer_but_not_from_the_scores():
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = Pruner(model, optimizer, criterion="gradient", regrow=True, mask_gradients=True, **SETTINGS)
    train(model, optimizer, 3)
    loss_of(model, 3).backward()
    before = model.fc.weight.grad.clone()
    optimizer.step()
    pruned = ~pruner.masks["fc"]
    assert (model.fc.weight.grad[pruned] == 0).all()
    assert torch.equal(pruner.scores["fc"], before.abs())


def scaled_run(model, optimizer, scaler, steps, overflow_at=(), unscale=False):
    """A loop with a GradScaler; returns the scores and the masks after each step."""
    pruner = Pruner(model, optimizer, **SETTINGS)
    seen = []
    for step in range(steps):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, step)).backward()
        if step in overflow_at:
            model.norm.bias.grad[0] = torch.inf
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        seen.append(({name: score.clone() for name, score in pruner.scores.items()}, pruner.masks))
    return pruner, seen


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_the_scale_is_taken_out_of_the_scores(fused, unscale):
    """A scale that is a power of two changes no bit."""
    models = [Model(), Model()]
    runs = []
    for model, enabled in zip(models, (False, True), strict=True):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=enabled)
        runs.append(scaled_run(model, optimizer, scaler, 7, unscale=unscale)[1])
    for plain, scaled in zip(*runs, strict=True):
        for a, b in zip(plain, scaled, strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)
    assert zeros(models[1]) == int(0.6 * ENTRIES)


@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_leaves_scores_masks_and_weights_untouched(fused):
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    # Every step of these is due: the masks wait for the first good one.
    pruner, seen = scaled_run(model, optimizer, scaler, 9, overflow_at=(2, 3))
    for step in (2, 3):
        for a, b in zip(seen[1], seen[step], strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(seen[3][1][name], seen[4][1][name]) for name in seen[3][1])
    assert pruner.step == (9 if fused else 7)
    assert zeros(model) == int(0.6 * ENTRIES)


def test_accumulated_batches_are_one_step():
    first, second = Model(), Model()
    optimizer = torch.optim.SGD(first.parameters(), lr=0.05)
    pruner = Pruner(first, optimizer, **SETTINGS)
    for step in range(6):
        for part in range(4):
            pruner.on_step_begin()
            (loss_of(first, 4 * step + part) / 4).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert pruner.step == 6
    other = torch.optim.SGD(second.parameters(), lr=0.05)
    whole = Pruner(second, other, **SETTINGS)
    for step in range(6):
        sum(loss_of(second, 4 * step + part) / 4 for part in range(4)).backward()
        other.step()
        other.zero_grad()
    assert all(torch.equal(pruner.masks[name], whole.masks[name]) for name in pruner.masks)


def test_the_score_sees_the_clipped_gradient():
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = Pruner(model, optimizer, criterion="gradient", **SETTINGS)
    loss_of(model, 0).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    clipped = model.fc.weight.grad.abs()
    optimizer.step()
    assert torch.equal(pruner.scores["fc"], clipped)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("pattern", ["1x1", "4x1"])
def test_weights_of_other_dtypes(dtype, pattern):
    model = Model().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = Pruner(model, optimizer, pattern=pattern, sparsity=0.75, end_step=5)
    train(model, optimizer, 6)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert all(score.dtype == expected for score in pruner.scores.values())
    assert pruner.detach().sparsity == 0.75


def test_scores_in_bfloat16():
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = Pruner(model, optimizer, criterion_config={"low_memory_usage": True}, **SETTINGS)
    train(model, optimizer, 6)
    assert all(score.dtype == torch.bfloat16 for score in pruner.scores.values())
    assert zeros(model) == int(0.6 * ENTRIES)


@pytest.mark.parametrize("wrap", ["compile", "method", "parallel"])
def test_compiled_and_wrapped_models(wrap):
    plain, model = Model(), Model()
    wrapped = {
        "compile": lambda: torch.compile(model, backend="aot_eager"),
        "method": lambda: model.compile(backend="aot_eager") or model,
        "parallel": lambda: nn.DataParallel(model),
    }[wrap]()
    for one in (plain, wrapped):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.05)
        pruner = Pruner(one, optimizer, **SETTINGS)
        for step in range(7):
            x, y = batch(step)
            nn.functional.cross_entropy(one(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [layer.name for layer in pruner.layers] == ["conv", "fc", "mlp"]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    assert zeros(model) == int(0.6 * ENTRIES)


def test_a_tied_weight_is_scored_with_its_whole_gradient_and_pruned_once():
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = Pruner(model, optimizer, include="fc", **SETTINGS)
    train(model, optimizer, 6)
    assert model.again.weight is model.fc.weight
    report = pruner.detach()
    assert (report.total, report.kept) == (128, 128 - int(0.6 * 128))


def test_a_learning_rate_scheduler_does_not_hide_the_step():
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    pruner = Pruner(model, optimizer, **SETTINGS)
    train(model, optimizer, 6, lambda step: decay.step())
    assert pruner.step == 6


def test_the_optimizer_can_still_be_copied():
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    Pruner(model, optimizer, **SETTINGS)
    assert copy.deepcopy(optimizer).param_groups[0]["lr"] == 0.05
