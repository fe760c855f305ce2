"""Objectives beside EsViT's and their heads: what their cases must reproduce."""

from collections.abc import Callable

from .clusters import swav
from .colors import igpt, masked_patch, quantize
from .contrast import byol, moby, moco2, mocov3, simclr
from .dense import densecl
from .distillation import dinov2, distill
from .heads import HEADS, head
from .labels import supervised
from .results import Given, Results

__all__ = ["KINDS", "Given", "Results"]

_objectives = {
    "byol": byol,
    "densecl": densecl,
    "dinov2": dinov2,
    "distill": distill,
    "igpt": igpt,
    "masked-patch": masked_patch,
    "moby": moby,
    "moco2": moco2,
    "mocov3": mocov3,
    "simclr": simclr,
    "supervised": supervised,
    "swav": swav,
}

# By kind; each takes the settings of a case and its tensors, in double precision.
KINDS: dict[str, Callable[[dict, Given], Results]] = {
    "quantize-igpt": quantize,
    **{f"objective-{name}": run for name, run in _objectives.items()},
    **{f"head-{name}": head for name in HEADS},
}
