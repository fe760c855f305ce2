"""Cases of the heads of objectives beside EsViT's, on a few rows each, seeded."""

from collections.abc import Callable
from functools import partial
from typing import Any

from reference.cases import Case
from reference.exact import complete
from reference.seeded import draw

Shapes = dict[str, tuple[int, ...]]

BATCH, INPUTS, HIDDEN, OUT = 4, 3, 4, 3


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    """A linear layer."""
    weight: Shapes = {f"param.{name}.weight": (outputs, inputs)}
    return weight | ({f"param.{name}.bias": (outputs,)} if bias else {})


def norm(name: str, width: int, *params: str) -> Shapes:
    """A batch normalization with these parameters."""
    names = [f"param.{name}.{part}" for part in params]
    names += [f"buffer.{name}.running_{part}" for part in ("mean", "var")]
    return dict.fromkeys(names, (width,))


def two(first: str, between: str, last: str, last_bias: bool) -> Shapes:
    """A projector and a predictor of two linear layers with a norm between them."""
    layers: Shapes = {}
    for head, inputs in (("projector", INPUTS), ("predictor", OUT)):
        layers |= linear(f"{head}.{first}", inputs, HIDDEN)
        layers |= norm(f"{head}.{between}", HIDDEN, "weight", "bias")
        layers |= linear(f"{head}.{last}", HIDDEN, OUT, last_bias)
    return layers


def mocov3() -> Shapes:
    """The form of vision transformers: three layers, last norms without parameters."""
    start = "base_encoder.head."
    return {
        **linear(f"{start}0", INPUTS, HIDDEN, False),
        **norm(f"{start}1", HIDDEN, "weight", "bias"),
        **linear(f"{start}3", HIDDEN, HIDDEN, False),
        **norm(f"{start}4", HIDDEN, "weight", "bias"),
        **linear(f"{start}6", HIDDEN, OUT, False),
        **norm(f"{start}7", OUT),
        **linear("predictor.0", OUT, HIDDEN, False),
        **norm("predictor.1", HIDDEN, "weight", "bias"),
        **linear("predictor.3", HIDDEN, OUT, False),
        **norm("predictor.4", OUT),
    }


def simclr() -> Shapes:
    """Two layers, the last of which has a gain and no shift."""
    return {
        **linear("nl_0.dense", INPUTS, INPUTS, False),
        **norm("nl_0.batch_normalization", INPUTS, "weight", "bias"),
        **linear("nl_1.dense", INPUTS, OUT, False),
        **norm("nl_1.batch_normalization", OUT, "weight"),
    }


def swav() -> Shapes:
    """A projector and five prototypes."""
    return {
        **linear("projection_head.0", INPUTS, HIDDEN),
        **norm("projection_head.1", HIDDEN, "weight", "bias"),
        **linear("projection_head.3", HIDDEN, OUT),
        **linear("prototypes", OUT, 5, False),
    }


def densecl() -> Shapes:
    """A head of whole views, and one of cells, whose layers are convolutions."""
    layers: Shapes = {}
    for name, ends in (("mlp", ()), ("mlp2", (1, 1))):
        first = linear(f"{name}.0", INPUTS, HIDDEN)
        for key, shape in (first | linear(f"{name}.2", HIDDEN, OUT)).items():
            layers[key] = shape if key.endswith("bias") else (*shape, *ends)
    return layers


def head_case(
    seed: int, name: str, layers: Shapes, outputs: Shapes, settings: dict[str, Any]
) -> Case:
    """A head on rows or, if there is a grid, on maps; the loss weighs its outputs."""
    shape = (BATCH, INPUTS, *settings.get("grid", ()))
    upstream = {f"grad_out.{output}": shape for output, shape in outputs.items()}
    tensors = draw(seed, {"input": shape} | layers | upstream)
    for key, value in tensors.items():
        if key.endswith("running_var"):
            tensors[key] = 1 + 0.2 * value.abs()
    sizes = {"batch": BATCH, "in": INPUTS, "hidden": HIDDEN, "out": OUT}
    return complete(Case({"kind": f"head-{name}"} | sizes | settings, tensors))


def head_cases() -> dict[str, Callable[[], Case]]:
    """Makers of the cases by folder name; every seed stands here."""
    rows = (BATCH, OUT)
    one: Shapes = {"projection": rows}
    both: Shapes = one | {"prediction": rows}
    of_swav: Shapes = {"embedding": rows, "scores": (BATCH, 5)}
    of_densecl: Shapes = {"global": rows, "grid": (*rows, 6), "dense_mean": rows}
    moby = two("linear_hidden.1", "linear_hidden.2", "linear_out", True)
    moco2 = linear("fc.0", INPUTS, INPUTS) | linear("fc.2", INPUTS, OUT)
    sizes = {"layers": 2, "ft_proj_selector": 1}
    heads: dict[str, tuple[int, Shapes, Shapes, dict[str, Any]]] = {
        "byol": (121, two("0", "1", "3", False), both, {}),
        "densecl": (122, densecl(), of_densecl, {"grid": [2, 3]}),
        "moby": (131, moby, both, {}),
        "moco2": (124, moco2, one, {}),
        "mocov3": (125, mocov3(), both, {"variant": "vit"}),
        "simclr": (126, simclr(), one, sizes),
        "swav": (127, swav(), of_swav, {"prototypes": 5}),
    }

    def maker(name: str) -> Callable[[], Case]:
        seed, *parts = heads[name]
        return partial(head_case, seed, name, *parts)

    return {f"head-{name}": maker(name) for name in heads}
