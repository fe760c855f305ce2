"""What the families beside Swin have in common: their output, and pieces of several."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Features:
    """What a backbone gives for one batch of images."""

    view: Tensor  # [B, C]
    region: Tensor  # [B, N, C], row-major
    blocks: list[Tensor]  # [B, C of the stage]: what a linear probe takes of each block
    last_attention: Tensor | None = None  # [B, heads, n, n] of the last block
    registers: Tensor | None = None  # [B, registers, C], after the final norm

    def last_blocks(self, count: int) -> Tensor:
        """Linear-probe feature of the last blocks, oldest first."""
        return torch.cat(self.blocks[-count:], -1)


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`[B, n, C]` to `[B, heads, n, C / heads]`; a head's channels are adjacent."""
    b, n, c = x.shape
    return x.view(b, n, heads, c // heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """The inverse of `split_heads`."""
    return x.transpose(1, 2).flatten(2)


def as_tokens(maps: Tensor) -> Tensor:
    """`[B, C, H, W]` to `[B, H * W, C]`."""
    return maps.flatten(2).transpose(1, 2)


def as_map(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse of `as_tokens`."""
    return tokens.transpose(1, 2).unflatten(2, size)
