import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """The models are too small for threads to help."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
