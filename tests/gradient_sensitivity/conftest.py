"""One thread: the models here are so small that a second one costs more than it gives."""

import pytest


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)
