"""Projectors and predictors in training mode, by the names of official checkpoints."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .results import Given, Results, gradients, leaf, unit

BATCH_NORM_EPS = 1e-5
BATCH_NORM_MOMENTUM = 0.1


class Layers:
    """The layers of a head over its given parameters."""

    def __init__(self, given: Given) -> None:
        start = "param."
        names = [name for name in given if name.startswith(start)]
        self.params = {name.removeprefix(start): leaf(given[name]) for name in names}
        self.given = given
        self.buffers: Given = {}

    def linear(self, x: Tensor, name: str) -> Tensor:
        """A linear layer or a 1 x 1 convolution, with a bias if there is one."""
        weight, bias = self.params[f"{name}.weight"], self.params.get(f"{name}.bias")
        return F.conv2d(x, weight, bias) if x.ndim == 4 else F.linear(x, weight, bias)

    def norm(self, x: Tensor, name: str) -> Tensor:
        """Batch normalization; the running variance alone is unbiased."""
        mean, variance = x.mean(0), x.var(0, correction=0)
        x = (x - mean) * (variance + BATCH_NORM_EPS).rsqrt()
        unbiased = variance * len(x) / (len(x) - 1)
        for kind, value in (("running_mean", mean), ("running_var", unbiased)):
            before = self.given[f"buffer.{name}.{kind}"]
            after = before + BATCH_NORM_MOMENTUM * (value.detach() - before)
            self.buffers[f"buffer_after.{name}.{kind}"] = after
        gain, shift = (self.params.get(f"{name}.{part}") for part in ("weight", "bias"))
        x = x if gain is None else x * gain
        return x if shift is None else x + shift

    def chain(self, x: Tensor, names: str, *parts: str) -> Tensor:
        """Layers `PARTS` below `names`: linear ones, norms (`n`) and ReLUs (`r`)."""
        for part in parts:
            if part == "r":
                x = x.relu()
            elif part.endswith("n"):
                x = self.norm(x, f"{names}{part[:-1]}")
            else:
                x = self.linear(x, f"{names}{part}")
        return x


Outputs = dict[str, Tensor]


def moco2(layers: Layers, x: Tensor, settings: dict) -> Outputs:
    return {"projection": layers.chain(x, "fc.", "0", "r", "2")}


def mocov3(layers: Layers, x: Tensor, settings: dict) -> Outputs:
    if settings["variant"] == "vit":
        names = ("0", "1n", "r", "3", "4n", "r", "6", "7n")
        projection = layers.chain(x, "base_encoder.head.", *names)
        names = ("0", "1n", "r", "3", "4n")
    else:
        names = ("0", "1n", "r", "3", "4n")
        projection = layers.chain(x, "base_encoder.fc.", *names)
        names = ("0", "1n", "r", "3")
    prediction = layers.chain(projection, "predictor.", *names)
    return {"projection": projection, "prediction": prediction}


def two(layers: Layers, x: Tensor, *names: str) -> Outputs:
    """A projector, and a predictor of its result."""
    projection = layers.chain(x, "projector.", *names)
    prediction = layers.chain(projection, "predictor.", *names)
    return {"projection": projection, "prediction": prediction}


def moby(layers: Layers, x: Tensor, settings: dict) -> Outputs:
    return two(layers, x, "linear_hidden.1", "linear_hidden.2n", "r", "linear_out")


def byol(layers: Layers, x: Tensor, settings: dict) -> Outputs:
    return two(layers, x, "0", "1n", "r", "3")


def simclr(layers: Layers, x: Tensor, settings: dict) -> Outputs:
    results, last = [x], settings["layers"] - 1
    for number in range(settings["layers"]):
        names = ["dense", "batch_normalizationn"] + (["r"] if number < last else [])
        results.append(layers.chain(results[-1], f"nl_{number}.", *names))
    chosen = results[settings["ft_proj_selector"]]
    return {"projection": results[-1], "finetune_input": chosen}


def swav(layers: Layers, x: Tensor, settings: dict) -> Outputs:
    z = unit(layers.chain(x, "projection_head.", "0", "1n", "r", "3"))
    return {"embedding": z, "scores": z @ layers.params["prototypes.weight"].T}


def densecl(layers: Layers, x: Tensor, settings: dict) -> Outputs:
    whole = layers.chain(x.mean((2, 3)), "mlp.", "0", "r", "2")
    grid = layers.chain(x, "mlp2.", "0", "r", "2").flatten(2)
    return {"global": whole, "grid": grid, "dense_mean": grid.mean(2)}


HEADS: dict[str, Callable[[Layers, Tensor, dict], Outputs]] = {
    "moco2": moco2,
    "mocov3": mocov3,
    "moby": moby,
    "byol": byol,
    "simclr": simclr,
    "swav": swav,
    "densecl": densecl,
}


def head(settings: dict, given: Given) -> Results:
    """Outputs, gradients of their weighted sum, and running statistics."""
    layers, x = Layers(given), leaf(given["input"])
    run = HEADS[settings["kind"].removeprefix("head-")]
    outputs = run(layers, x, settings)
    weighted = [
        (value * given[f"grad_out.{name}"]).sum()
        for name, value in outputs.items()
        if f"grad_out.{name}" in given
    ]
    leaves = {f"grad.param.{name}": value for name, value in layers.params.items()}
    tensors = gradients(torch.stack(weighted).sum(), leaves | {"grad.input": x})
    tensors |= {f"out.{name}": value for name, value in outputs.items()}
    return Results({}, tensors | layers.buffers)
