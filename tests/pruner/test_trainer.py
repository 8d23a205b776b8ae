"""transformers.Trainer with the callback: exact sparsity, and resume to the bit."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from training import same_state  # noqa: E402

from pruneops.integrations.transformers import STATE_FILE, PruningCallback  # noqa: E402

SETTINGS = {"sparsity": 0.75, "pattern": "4x1", "end_step": 8, "frequency": 2}


def make_model():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def data():
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(50, (40, 8), generator=generator)
    return [{"input_ids": row, "labels": int(row.sum()) % 2} for row in ids]


class StopAt(transformers.TrainerCallback):
    """An interruption after a step, as a crash would be."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trainer(folder, *callbacks, **more):
    arguments = {
        "output_dir": str(folder), "max_steps": 12, "per_device_train_batch_size": 4, "save_steps": 5, "seed": 1,
        "learning_rate": 1e-2, "report_to": [], "disable_tqdm": True, "use_cpu": True, "logging_steps": 1000,
        "gradient_accumulation_steps": 2,
    }  # fmt: skip
    args = transformers.TrainingArguments(**arguments | more)
    return transformers.Trainer(
        make_model(), args, train_dataset=data(), eval_dataset=data()[:8], callbacks=list(callbacks)
    )


def test_the_sparsity_is_exact(tmp_path):
    callback = PruningCallback(**SETTINGS)
    run = trainer(tmp_path, callback)
    run.train()
    report = callback.report
    blocks = sum(layer.total for layer in report.layers) // 4
    assert report.total - report.kept == 4 * int(0.75 * blocks)
    assert {name.split(".")[0] for name in report.masks} == {"bert"}
    for name, mask in report.masks.items():
        assert (run.model.get_submodule(name).weight[~mask] == 0).all()
    assert callback.pruner.step == 12
    assert not run.optimizer.optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("criterion", ["snip_momentum", "magnitude"])
def test_interrupted_and_resumed(criterion, tmp_path):
    whole = PruningCallback(criterion=criterion, **SETTINGS)
    first = trainer(tmp_path / "a", whole)
    first.train()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "b", PruningCallback(criterion=criterion, **SETTINGS), StopAt(7)).train()
    assert (tmp_path / "b" / "checkpoint-5" / STATE_FILE).is_file()
    rest = PruningCallback(criterion=criterion, **SETTINGS)
    second = trainer(tmp_path / "b", rest)
    second.train(resume_from_checkpoint=True)
    assert same_state(first.model, second.model)
    assert same_state(whole.pruner, rest.pruner)
    assert all(torch.equal(mask, rest.report.masks[name]) for name, mask in whole.report.masks.items())


def test_a_checkpoint_elsewhere(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "a", PruningCallback(**SETTINGS), StopAt(7)).train()
    checkpoint = str(tmp_path / "a" / "checkpoint-5")
    lost = PruningCallback(**SETTINGS)
    with pytest.raises(ValueError, match=r"goes on at step 5, but there is no .*checkpoint-5/pruner.safetensors"):
        trainer(tmp_path / "b", lost).train(resume_from_checkpoint=checkpoint)
    callback = PruningCallback(resume_from=checkpoint, **SETTINGS)
    trainer(tmp_path / "b", callback).train(resume_from_checkpoint=checkpoint)
    assert callback.pruner.step == 12


def test_the_last_fifth_adapts_by_default(tmp_path):
    callback = PruningCallback(sparsity=0.5, pattern="1x1")
    trainer(tmp_path, callback, max_steps=10).train()
    (group,) = callback.pruner._groups
    assert group.schedule.end_step == 8
    assert callback.report.total - callback.report.kept == int(0.5 * callback.report.total)


def test_a_recipe_decides(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("targets: '*.attention.*'\npattern: 2:4\nend_step: 6\n")
    for recipe in (file, {"targets": "*.attention.*", "pattern": "2:4", "end_step": 6}):
        callback = PruningCallback(recipe)
        trainer(tmp_path / "run", callback, max_steps=7, save_strategy="no").train()
        assert callback.report.sparsity == 0.5
        assert callback.pruner._groups[0].schedule.end_step == 6


def test_training_twice_leaves_one_set_of_hooks(tmp_path):
    callback = PruningCallback(**SETTINGS)
    run = trainer(tmp_path, callback, StopAt(4))
    with pytest.raises(KeyboardInterrupt):
        run.train()
    run.callback_handler.callbacks = [c for c in run.callback_handler.callbacks if not isinstance(c, StopAt)]
    run.train()
    assert callback.pruner.step == 12


@pytest.mark.parametrize("name", ["deepspeed", "fsdp"])
def test_frameworks_that_hide_the_gradients_are_refused(name, tmp_path):
    callback = PruningCallback(**SETTINGS)
    run = trainer(tmp_path, callback)
    setattr(run.args, name, "on")
    with pytest.raises(ValueError, match=f"training with {name} is not supported"):
        callback.on_train_begin(run.args, run.state, run.control, model=run.model, optimizer=None)


def test_the_best_model_gets_the_final_masks(tmp_path):
    callback = PruningCallback(**SETTINGS)
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    run = trainer(tmp_path, callback, **best, save_total_limit=2)
    with pytest.warns(UserWarning, match="load_best_model_at_end"):
        run.train()
    for name, mask in callback.report.masks.items():
        assert (run.model.get_submodule(name).weight[~mask] == 0).all()
    assert callback.report.total - callback.report.kept == 4 * int(0.75 * callback.report.total / 4)
