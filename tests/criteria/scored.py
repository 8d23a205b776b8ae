"""Weights and gradients, and steps of a criterion with them."""

from dataclasses import dataclass

import torch
from torch import nn

ELEMENT = ("magnitude", "gradient", "snip", "snip_momentum")
BLOCK = ("snip_momentum_block", "retrain_free")
STEPS = 20


def weight_of(value):
    return value if isinstance(value, torch.Tensor) else value.weight


def train_step(modules, seed):
    """New weights and gradients, over many orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    for value in modules.values():
        weight = weight_of(value)
        scale = torch.exp(8 * torch.randn(weight.shape, generator=generator))
        weight.data = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        weight.grad = (torch.randn(weight.shape, generator=generator) * scale).to(weight.dtype)


def step(criterion):
    criterion.on_step_begin()
    criterion.on_before_optimizer_step()
    criterion.on_after_optimizer_step()


def eager(name, score, w, g, alpha=0.9, beta=1.0):
    """One step of the criterion, in the order in which INC computes it."""
    if name == "magnitude":
        return torch.abs(w)
    if name == "gradient":
        return torch.abs(g)
    if name == "snip":
        return torch.abs(w * g)
    return score * alpha + beta * torch.abs(w * g)


def out_by_in(name, x):
    return x.T if name == "gpt" else x


def with_block_masks(modules, mask_shape=(2, 12)):
    modules["fc"].block_mask = nn.Parameter(torch.ones(mask_shape))
    return modules


@dataclass
class Config:
    criterion_type: str = "snip_momentum"
    alpha: float = 0.5
    end_step: int = 10
    low_memory_usage: bool = True
