"""Modules that several tests prune."""

import torch
from torch import nn


class Conv1D(nn.Module):
    """GPT-2's linear layer: the weight is stored in x out."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf) / nx**0.5)

    def forward(self, x):
        return x @ self.weight
