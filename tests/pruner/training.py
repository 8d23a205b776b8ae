"""Small models and loops that the tests of pruning while training share."""

import torch
from modules import Conv1D
from oracle import as_blocks
from torch import nn

from pruneops import PruningCriterion, register_criterion


class Model(nn.Module):
    """Linear, convolution, Conv1D and a weight that two modules share; all divisible by 4."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(4, 8, 2)
        self.fc = nn.Linear(8, 16)
        self.mlp = Conv1D(8, 16)
        self.again = nn.Linear(8, 16)
        self.again.weight = self.fc.weight
        self.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        x = self.norm(self.mlp(torch.tanh(self.fc(x))))
        return self.lm_head(self.mlp(torch.tanh(self.again(x))))


@register_criterion("test_entries")
class Entries(PruningCriterion):
    """Assigns one score per entry, in the layout of the weight, whatever the pattern."""

    def on_before_optimizer_step(self):
        for name in self.modules:
            before = self.scores.get(name, 0.0)
            self.scores[name] = 0.5 * before + (self.weight(name).detach() * self.gradient(name)).abs()


#: Shapes of the prunable weights, out x in, by name.
SHAPES = {"conv": (8, 4, 2, 2), "fc": (16, 8), "mlp": (8, 16)}
ENTRIES = 128 + 128 + 128


def sgd(model, **settings):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, **settings)


def batch(step, size=6):
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(size, 4, 3, 3, generator=generator), torch.randint(3, (size,), generator=generator)


def loss_of(model, step, size=6):
    x, y = batch(step, size)
    return nn.functional.cross_entropy(model(x.to(next(model.parameters()).dtype)).float(), y)


def train(model, optimizer, steps, after=lambda step: None, first=0):
    """Plain training steps, the first one being step ``first``."""
    for step in range(first, first + steps):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        after(step + 1)
    return model


def weights(model):
    """The prunable weights as out x in."""
    return {"conv": model.conv.weight, "fc": model.fc.weight, "mlp": model.mlp.weight.t()}


def blocks_of(x, block):
    """NumPy array (R/N, C/M, N*M) of the blocks of an out x in or conv weight."""
    blocks = as_blocks(x.detach().float().numpy(), block).transpose(0, 2, 1, 3)
    return blocks.reshape(*blocks.shape[:2], -1)


def same_state(first, second):
    """Whether two modules or flat states hold the same bits."""
    first, second = (x.state_dict() if hasattr(x, "state_dict") else x for x in (first, second))
    assert first.keys() == second.keys()
    return all(torch.equal(first[key].view(-1), second[key].view(-1)) for key in first if first[key].numel())
