"""What the tests of contracts share."""

from contextlib import nullcontext

import pytest

from bench.check import reference


@pytest.fixture(params=["in use", "reference"])
def backend(request):
    """The operators as they are here, and their PyTorch reference."""
    with reference() if request.param == "reference" else nullcontext():
        yield
