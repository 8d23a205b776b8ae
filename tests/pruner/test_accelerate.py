"""Accelerate: its loop, accumulation, mixed precision and checkpoints."""

import pytest
import torch
from torch.utils.data import DataLoader
from training import ENTRIES, Model, batch, same_state, weights

accelerate = pytest.importorskip("accelerate")

from pruneops.integrations.accelerate import prepare_pruner  # noqa: E402

SETTINGS = {"pattern": "1x1", "sparsity": 0.6, "end_step": 6, "frequency": 1}


@pytest.fixture(autouse=True)
def _fresh_state():
    """Accelerators share one state in a process."""
    accelerate.state.AcceleratorState._reset_state(True)


def start(**more):
    accelerator = accelerate.Accelerator(cpu=True, **more)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = DataLoader([(x[0], y[0]) for x, y in (batch(step, 1) for step in range(96))], batch_size=6)
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    pruner = prepare_pruner(accelerator, model, optimizer, **SETTINGS)
    return accelerator, model, optimizer, list(data), pruner


def train(accelerator, model, optimizer, batches):
    for x, y in batches:
        with accelerator.accumulate(model):
            accelerator.backward(torch.nn.functional.cross_entropy(model(x), y))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("more", [{}, {"mixed_precision": "bf16"}])
def test_the_sparsity_is_exact(more):
    accelerator, model, optimizer, data, pruner = start(**more)
    train(accelerator, model, optimizer, data[:8])
    assert pruner.step == 8
    assert sum(int((w == 0).sum()) for w in weights(accelerator.unwrap_model(model)).values()) == int(0.6 * ENTRIES)
    pruner.detach()


def test_accumulation_counts_real_steps():
    accelerator, model, optimizer, data, pruner = start(gradient_accumulation_steps=2)
    train(accelerator, model, optimizer, data[:12])
    assert pruner.step == 6
    assert pruner.detach().kept == ENTRIES - int(0.6 * ENTRIES)


@pytest.mark.parametrize("stop", [0, 1, 3, 6])
def test_save_state_and_load_state(stop, tmp_path):
    accelerator, whole, optimizer, data, pruner = start()
    train(accelerator, whole, optimizer, data[:8])

    accelerator, first, early, data, _ = start()
    train(accelerator, first, early, data[:stop])
    accelerator.save_state(str(tmp_path / "state"))

    accelerator, resumed, late, data, rest = start()
    accelerator.load_state(str(tmp_path / "state"))
    assert rest.step == stop
    train(accelerator, resumed, late, data[stop:8])
    assert same_state(whole, resumed)
    assert same_state(pruner, rest)


def test_frameworks_that_hide_the_gradients_are_refused():
    _, model, optimizer, *_ = start()

    class Elsewhere:
        distributed_type = accelerate.DistributedType.DEEPSPEED

    with pytest.raises(ValueError, match="DEEPSPEED is not supported"):
        prepare_pruner(Elsewhere(), model, optimizer, **SETTINGS)


def test_a_recipe():
    accelerator = accelerate.Accelerator(cpu=True)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    pruner = prepare_pruner(accelerator, model, optimizer, recipe={"targets": "fc", "pattern": "2:4"}, end_step=3)
    assert [layer.name for layer in pruner.layers] == ["fc"]
