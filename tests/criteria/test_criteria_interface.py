"""Names, settings, hooks, storage and state of criteria."""

import io
import pickle
import re
from types import SimpleNamespace

import pytest
import torch
from scored import BLOCK, ELEMENT, Config, step, train_step
from torch import nn

from pruneops import CRITERIA, PruningCriterion, criterion_from_metric, get_criterion, register_criterion


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
