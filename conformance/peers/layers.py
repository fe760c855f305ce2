"""What several of the networks are made of.

Maps are `[B, H, W, C]`: seen as `[B, C, H, W]` they are in PyTorch's `channels_last` format, so
that convolutions and linear layers take turns without a copy.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def drop_path_rates(last: float, blocks: int) -> list[float]:
    """Rates of all blocks, from 0 at the first to that of the last."""
    return torch.linspace(0, last, blocks).tolist()


class DropPath(nn.Module):
    """Stochastic depth: some images go without the branch, it counts more for the others."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if self.rate == 0 or not self.training:
            return branch
        shape = [branch.shape[0]] + [1] * (branch.ndim - 1)
        kept = branch.new_empty(shape).bernoulli_(1 - self.rate)
        return branch * kept.div_(1 - self.rate)


class Mlp(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class MapConv(nn.Conv2d):
    """A convolution of maps `[B, H, W, C]`."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def heads_of(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """`[B, n, parts * C]` as `[B, heads, n, C / heads]` each: queries, keys, values."""
    b, n, width = x.shape
    split = x.view(b, n, parts, heads, width // parts // heads)
    return split.permute(2, 0, 3, 1, 4).unbind(0)


def joined_heads(x: Tensor) -> Tensor:
    """`[B, heads, n, d]` as `[B, n, heads * d]`."""
    return x.transpose(1, 2).flatten(2)
