"""Neural Compressor's own training flow on small models, recorded step by step."""

import logging
from dataclasses import dataclass

import torch
from neural_compressor import WeightPruningConfig
from neural_compressor.training import prepare_compression
from torch import nn

logging.disable(logging.INFO)


class Block(nn.Module):
    """A transformer's block of one attention head."""

    def __init__(self, width):
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))

    def forward(self, x):
        attention = torch.softmax(self.query(x) @ self.key(x).transpose(1, 2) / 4, -1)
        x = self.norms[0](x + self.output(attention @ self.value(x)))
        return self.norms[1](x + self.down(torch.relu(self.up(x))))


class Transformer(nn.Module):
    example = (6, 16)

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(16), Block(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.blocks(x).mean(1))


class ConvNet(nn.Module):
    example = (4, 8, 8)
    channels = 16

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, stride=2)
        self.third = nn.Conv2d(32, self.channels, 1)
        self.linear = nn.Linear(self.channels, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        for conv in (self.first, self.second, self.third):
            x = torch.relu(conv(x))
        return self.head(torch.relu(self.linear(x.mean((2, 3)))))


class OddConvNet(ConvNet):
    """Two of its layers have sizes that neither 4x1 nor 2:4 divides."""

    channels = 15


@dataclass
class Record:
    """Weights at the end, and masks and scores of each step."""

    weights: dict
    masks: list
    scores: list


def run(kind, steps=10, **config):
    """Train with Neural Compressor's callbacks; the data and the initial weights are always the same."""
    torch.manual_seed(0)
    model = kind()
    compression = prepare_compression(model, WeightPruningConfig([{"start_step": 0, "end_step": steps - 1, **config}]))
    callbacks = compression.callbacks
    pruner = callbacks.callbacks_list[0].pruners[0]
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    record = Record({}, [], [])
    callbacks.on_train_begin()
    for step in range(steps + 1):
        inputs, labels = torch.randn(8, *kind.example), torch.randint(0, 5, (8,))
        callbacks.on_step_begin(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        callbacks.on_before_optimizer_step()
        optimizer.step()
        callbacks.on_after_optimizer_step()
        callbacks.on_step_end()
        record.masks.append({key: mask.detach().clone() for key, mask in pruner.masks.items()})
        record.scores.append({key: score.detach().clone() for key, score in pruner.criterion.scores.items()})
    callbacks.on_train_end()
    record.weights = {key: value.detach().clone() for key, value in model.state_dict().items()}
    return record
