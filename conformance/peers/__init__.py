"""The networks that `speed.py` times in PyTorch, one file an architecture.

Each is the network of that name in `esvit info`, with parameters in the order of the official
files and equal features (`check_peers.py`), written to be fast. Where timm or torchvision has it,
it is theirs; the others are written here. `build(form, drop_path)` of a file gives a module that
takes images `[B, 3, H, W]` and returns the view feature `[B, C]` and the region features
`[B, N, C]`; C is its `out_dim`.

PyTorch is imported by `build` alone, so that what only starts other processes stays small.
"""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Peer:
    """How an architecture may be run."""

    # Of these the one is timed that takes least time.
    forms: tuple[str, ...] = ("plain",)
    # Rate of stochastic depth of the student's last block.
    drop_path: float = 0.1


PEERS = {
    "swin_tiny": Peer(("explicit", "fused")),
    "vit_small16": Peer(),
    "cvt_tiny": Peer(),
    "vil_2262": Peer(("explicit", "fused")),
    "pvt_small": Peer(),
    "resnet50": Peer(("contiguous", "channels_last"), drop_path=0.0),
}


def build(arch: str, form: str, drop_path: float) -> "nn.Module":
    """A network with random weights in one of its forms."""
    if form not in PEERS[arch].forms:
        raise ValueError(f"`{arch}` has no form `{form}`")
    return importlib.import_module(f"{__name__}.{arch}").build(form, drop_path)
