"""Seeded values of networks and inputs, as a trained network could have them."""

import re
from collections.abc import Iterable

import torch
from torch import Generator, Tensor, nn


def normal(generator: Generator, *shape: int) -> Tensor:
    """Standard normal values."""
    return torch.randn(*shape, generator=generator)


def draw(seed: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Normal values by name."""
    generator = Generator().manual_seed(seed)
    return {name: normal(generator, *shape) for name, shape in shapes.items()}


@torch.no_grad()
def perturb(network: nn.Module, generator: Generator) -> None:
    """Gives every parameter and buffer a value that a trained network could have."""
    for name, p in network.named_parameters():
        noise = normal(generator, *p.shape)
        if name.endswith("weight_g"):
            p.copy_(1 + 0.2 * noise if p.requires_grad else torch.ones(p.shape))
        elif "bias_table" in name or "pos_embed" in name:
            p.copy_(0.5 * noise)
        elif p.ndim == 1:
            p.copy_(0.2 * noise + (1.0 if name.endswith("weight") else 0.0))
        else:
            p.copy_(noise / p[0].numel() ** 0.5)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.2 * normal(generator, *buffer.shape))
        elif name.endswith("running_var"):
            buffer.copy_(1 + 0.2 * normal(generator, *buffer.shape).abs())


@torch.no_grad()
def shrink(network: nn.Module, modules: Iterable[str], factor: float) -> None:
    """Multiplies what matches a pattern, so that the eps of the norms behind it shows.

    Running statistics follow.
    """
    patterns = [re.compile(pattern) for pattern in modules]

    def is_meant(name: str) -> bool:
        return any(pattern.fullmatch(name) for pattern in patterns)

    for name, p in network.named_parameters():
        if is_meant(name):
            p.mul_(factor)
    for name, buffer in network.named_buffers():
        if is_meant(name):
            buffer.mul_(factor**2 if name.endswith("running_var") else factor)


def state(network: nn.Module, prefix: str) -> dict[str, Tensor]:
    """A copy of parameters and buffers under a prefix."""
    return {f"{prefix}.{k}": v.clone() for k, v in network.state_dict().items()}
