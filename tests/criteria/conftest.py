"""What criteria score here."""

import pytest
import torch
from modules import Conv1D
from torch import nn


@pytest.fixture
def modules():
    torch.manual_seed(0)
    return {
        "fc": nn.Linear(12, 8),
        "conv": nn.Conv2d(4, 8, 3),
        "tensor": nn.Parameter(torch.randn(16, 5)),
        "gpt": Conv1D(8, 6),
    }
