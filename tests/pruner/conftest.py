import pytest


@pytest.fixture(autouse=True)
def _one_thread(threads):
    """The models are too small for threads to help."""
    threads(1)
