"""Deterministic numbers that any language can remake, for the full-size fixtures."""

import math

import numpy as np
import torch
from torch import Tensor, nn

MASK = np.uint64(0xFFFFFFFF)
MULTIPLIER = np.uint64(0x45D9F3B)


def hashed(stream: int, shape: list[int]) -> Tensor:
    """A tensor of values in [-1, 1): entry i is a mix of the stream and i."""
    x = np.arange(math.prod(shape), dtype=np.uint64) * np.uint64(2654435761)
    x = (x + np.uint64(stream * 40503 + 12345)) & MASK
    for _ in range(2):
        x ^= x >> np.uint64(16)
        x = (x * MULTIPLIER) & MASK
    x ^= x >> np.uint64(16)
    values = x.astype(np.float64) / 2**32 * 2 - 1
    return torch.from_numpy(values.astype(np.float32)).view(shape)


@torch.no_grad()
def fill(module: nn.Module) -> None:
    """Fills parameter p (in definition order) from stream p, scaled to its use."""
    for stream, (name, p) in enumerate(module.named_parameters()):
        p.copy_(fill_value(name, stream, list(p.shape)))


# Parts of names of what is added to tokens or logits.
TABLES = ("bias_table", "relative_position_bias", "pos_embed", "cls_token")


def fill_value(name: str, stream: int, shape: list[int]) -> Tensor:
    """The value of one parameter."""
    if name.endswith("weight_g"):
        return torch.ones(shape)
    if any(part in name for part in TABLES):
        return 0.5 * hashed(stream, shape)
    if len(shape) == 1:
        return 0.1 * hashed(stream, shape) + (1.0 if name.endswith("weight") else 0.0)
    return hashed(stream, shape) * math.sqrt(3 / math.prod(shape[1:]))


def hashed_image(size: int) -> Tensor:
    """A unit-variance test image."""
    return hashed(1000, [1, 3, size, size]) * math.sqrt(3)
