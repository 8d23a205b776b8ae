"""Devices, markers and hypothesis profiles of the whole suite."""

import os

import pytest
import torch
from hypothesis import Phase, settings

settings.register_profile("default", max_examples=50, deadline=None, derandomize=True)
settings.register_profile("sanitize", max_examples=10, deadline=None, derandomize=True)
settings.register_profile("no_shrinking", settings.get_profile("default"), phases=[Phase.explicit, Phase.generate])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


# Session scope: hypothesis runs many examples within one test, which all share the device.
@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    return request.param


@pytest.fixture
def threads():
    """Set the number of CPU threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def single(tmp_path):
    """A checkpoint of one file."""
    import checkpoints  # needs safetensors, which kernels do without

    return checkpoints.one_file(tmp_path / "dense.safetensors")


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face directory with one file."""
    import checkpoints

    return checkpoints.hugging_face(tmp_path / "hf", [checkpoints.model()])


def pytest_collection_modifyitems(config, items):
    if not torch.cuda.is_available():
        no_device = pytest.mark.skip(reason="no CUDA device")
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(no_device)
    if "large" not in config.getoption("-m"):
        large = [item for item in items if "large" in item.keywords]
        config.hook.pytest_deselected(items=large)
        items[:] = [item for item in items if "large" not in item.keywords]
