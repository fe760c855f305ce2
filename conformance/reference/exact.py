"""Cases computed in double precision from what is stored in single precision."""

from collections.abc import Callable

import torch
from torch import Tensor

from .cases import Case
from .families.case import backbone
from .objectives import KINDS, Given, Results

# Shares of the tolerances of `tolerance` that single precision may be off by.
ROOM = 0.1

# Losses and other numbers, relative.
NUMBER = 1e-5
# Gradients, of the largest entry.
GRADIENT = 1e-4
# Gradients with no larger entry vanish in exact arithmetic, or nearly so.
VANISHING = 1e-4
# Their tolerance, absolute.
ZERO_GRADIENT = 1e-5
# Other tensors, of the largest entry.
VALUE = 1e-5
# Features of backbones, absolute.
FEATURE = 2e-4


def computer(settings: dict) -> Callable[[dict, Given], Results] | None:
    """What computes cases of this kind, if it is one of these."""
    if settings["kind"] == "backbone" and settings["family"] != "swin":
        # Fixed neighbors of windows are not among them.
        return None if "op" in settings else backbone
    return KINDS.get(settings["kind"])


def with_floats(tensors: Given, dtype: torch.dtype) -> Given:
    """The same tensors; those that are not whole numbers in another precision."""
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}


def tolerance(kind: str, name: str, expected: Tensor) -> float:
    """The largest allowed difference of a tensor."""
    if not expected.is_floating_point():
        return 0.0
    largest = expected.abs().max().item()
    if "grad" in name:
        return ZERO_GRADIENT if largest < VANISHING else GRADIENT * largest
    return FEATURE if kind == "backbone" else VALUE * largest


def place(settings: dict, path: str) -> tuple[dict, str]:
    """The table of `case.json` that has a number, and its key there."""
    *parts, key = path.split(".")
    table = settings
    for part in parts:
        table = table[int(part)] if isinstance(table, list) else table[part]
    return table, key


def complete(case: Case) -> Case:
    """A case with what it must reproduce, refused if that could turn on rounding."""
    compute = computer(case.settings)
    exact, rounded = (
        compute(case.settings, with_floats(case.tensors, dtype))
        for dtype in (torch.float64, torch.float32)
    )
    for name, value in exact.tensors.items():
        room = ROOM * tolerance(case.settings["kind"], name, value)
        if not (value.double() - rounded.tensors[name].double()).abs().max() <= room:
            raise ValueError(f"`{name}` turns on rounding")
    for path, value in exact.numbers.items():
        room = ROOM * NUMBER * max(abs(value), 1e-3)
        if not abs(value - rounded.numbers[path]) <= room:
            raise ValueError(f"`{path}` turns on rounding")
        table, key = place(case.settings, path)
        table[key] = value
    case.tensors |= with_floats(exact.tensors, torch.float32)
    return case
