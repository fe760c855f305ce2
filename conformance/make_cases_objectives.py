"""Cases of the objectives beside EsViT's: a few rows each, seeded."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from reference.cases import Case
from reference.exact import complete
from reference.objectives import Given
from reference.seeded import draw, normal

BATCH, DIM = 4, 5
TEMPERATURE = 0.3


def case(kind: str, settings: dict, tensors: Given, steps: int = 0) -> Case:
    """A case with its results; `steps` entries are for numbers of single steps."""
    settings = {"kind": kind} | settings
    if steps:
        settings["steps"] = [{} for _ in range(steps)]
    return complete(Case(settings, tensors))


def by_step(
    steps: int, shapes: dict[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The same shapes in every step."""
    return {f"step.{n}.{name}": s for n in range(steps) for name, s in shapes.items()}


def with_queues(tensors: Given, *names: str, place: int) -> Given:
    """Keys of unit length in the queues `[D, K]`."""
    units = {name: F.normalize(tensors[name], dim=0) for name in names}
    return tensors | units | {"queue_ptr": torch.tensor([place])}


def moco2(seed: int) -> Case:
    """A queue of six keys, of which the second step's replace some of the first's."""
    settings = {
        "batch": BATCH,
        "dim": DIM,
        "queue_length": 6,
        "temperature": TEMPERATURE,
    }
    shapes = by_step(2, {"q": (BATCH, DIM), "k": (BATCH, DIM)})
    tensors = draw(seed, {"queue": (DIM, 6)} | shapes)
    return case("objective-moco2", settings, with_queues(tensors, "queue", place=3), 2)


def moby(seed: int) -> Case:
    """Two queues with one place."""
    settings = {
        "batch": BATCH,
        "dim": DIM,
        "queue_length": 6,
        "temperature": TEMPERATURE,
    }
    names = ("pred1", "pred2", "proj1_k", "proj2_k")
    shapes = by_step(2, dict.fromkeys(names, (BATCH, DIM)))
    tensors = draw(seed, dict.fromkeys(("queue1", "queue2"), (DIM, 6)) | shapes)
    tensors = with_queues(tensors, "queue1", "queue2", place=3)
    return case("objective-moby", settings, tensors, 2)


def mocov3(seed: int) -> Case:
    """Not of temperature 1, by which the factor of the loss would not show."""
    settings = {"batch": BATCH, "dim": DIM, "temperature": TEMPERATURE}
    tensors = draw(seed, dict.fromkeys(("q1", "q2", "k1", "k2"), (BATCH, DIM)))
    return case("objective-mocov3", settings, tensors)


def simclr(seed: int) -> Case:
    settings = {"batch": BATCH, "dim": DIM, "temperature": TEMPERATURE}
    tensors = draw(seed, {"hidden": (2 * BATCH, DIM)})
    return case("objective-simclr", settings, tensors)


def byol(seed: int) -> Case:
    names = ["prediction1", "prediction2", "projection1_target", "projection2_target"]
    tensors = draw(seed, dict.fromkeys(names, (BATCH, DIM)))
    return case("objective-byol", {"batch": BATCH, "dim": DIM}, tensors)


def swav(seed: int) -> Case:
    """Three crops; the queue is full in the third step."""
    settings = {
        "batch": BATCH,
        "dim": DIM,
        "prototypes": 6,
        "crops": 3,
        "crops_for_assign": [0, 1],
        "temperature": 0.1,
        "epsilon": 0.05,
        "sinkhorn_iterations": 3,
        "queue_length": 8,
    }
    shapes = {"prototypes": (6, DIM)} | by_step(3, {"z": (3 * BATCH, DIM)})
    tensors = draw(seed, shapes) | {"queue": torch.zeros(2, 8, DIM)}
    return case("objective-swav", settings, tensors, 3)


def densecl(seed: int) -> Case:
    """Maps of 2 x 3 cells; unequal weights of both losses."""
    grid = (2, 3)
    settings = {"batch": BATCH, "feature_dim": 4, "grid": list(grid), "dim": DIM}
    settings |= {"queue_length": 6, "temperature": TEMPERATURE, "loss_lambda": 0.4}
    views = dict.fromkeys(("q", "k", "k_dense_mean"), (BATCH, DIM))
    grids = dict.fromkeys(("q_grid", "k_grid"), (BATCH, DIM, 6))
    maps = dict.fromkeys(("q_features", "k_features"), (BATCH, 4, *grid))
    queues = dict.fromkeys(("queue", "queue2"), (DIM, 6))
    tensors = draw(seed, queues | by_step(1, views | grids | maps))
    tensors = with_queues(tensors, "queue", "queue2", place=4)
    tensors["queue2_ptr"] = tensors["queue_ptr"].clone()
    return case("objective-densecl", settings, tensors, 1)


def supervised(seed: int, mode: str, **settings: Any) -> Case:
    """Smoothed labels, which may be those of mixed images of an odd size."""
    settings = {"mode": mode, "batch": BATCH, "classes": 3, "smoothing": 0.1} | settings
    tensors = draw(seed, {"logits": (BATCH, 3), "images": (BATCH, 3, 4, 3)})
    if mode == "label_smoothing":
        del tensors["images"]
    tensors["labels"] = torch.tensor([2, 0, 1, 1])
    return case("objective-supervised", settings, tensors)


def igpt(seed: int, mode: str) -> Case:
    """Two heads, images of 2 x 2 tokens of three colors."""
    colors, dim, heads, classes, side = 3, 4, 2, 2, 2
    shapes: dict[str, tuple[int, ...]] = {
        "wte": (colors, dim),
        "wpe": (side * side, dim),
        "ln_f/g": (dim,),
        "wtet": (colors, dim),
        "clf/wclf": (classes, dim),
        "h0/ln_1/g": (dim,),
        "h0/ln_2/g": (dim,),
        "h0/mlp/c_fc/w": (dim, 4 * dim),
        "h0/mlp/c_proj/w": (4 * dim, dim),
    }
    names = ("q_proj", "k_proj", "v_proj", "c_proj")
    shapes |= dict.fromkeys((f"h0/attn/{name}" for name in names), (heads, 2, dim))
    if mode == "autoregressive":
        shapes["sos"] = (dim,)
    values = draw(
        seed, {f"param.model/{name}": shape for name, shape in shapes.items()}
    )
    # Small beside the eps of the norms, which shows so.
    small = ("wte", "wpe", "sos", "c_proj", "c_proj/w")

    def scaled(name: str, value: Tensor) -> Tensor:
        if name.endswith("/g"):
            return 1 + 0.2 * value
        return 0.01 * value if name.endswith(small) else 0.5 * value

    tensors = {name: scaled(name, value) for name, value in values.items()}
    tensors["tokens"] = torch.tensor([[0, 2, 1, 1], [2, 0, 0, 1]])
    tensors["labels"] = torch.tensor([1, 0])
    if mode == "bert":
        masked = [[0, 1, 1, 0], [0, 0, 0, 1]]
        tensors["masked"] = torch.tensor(masked, dtype=torch.uint8)
    settings = {"mode": mode, "batch": 2, "pixels_per_side": side, "vocabulary": colors}
    settings |= {"embed_dim": dim, "heads": heads, "layers": 1, "classes": classes}
    return case("objective-igpt", settings, tensors)


def quantize(seed: int) -> Case:
    generator = Generator().manual_seed(seed)
    pixels = torch.randint(256, (12, 3), generator=generator).to(torch.uint8)
    clusters = torch.rand(6, 3, generator=generator) * 2 - 1
    tensors = {"clusters": clusters, "pixels": pixels}
    return case("quantize-igpt", {"clusters": 6, "pixels": 12}, tensors)


def masked_patch(seed: int) -> Case:
    """Patches of 2 x 2 pixels of images with an edge that no patch has."""
    images, height, width, side, dim = 2, 4, 5, 2, 1
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    generator = Generator().manual_seed(seed)
    shape = (images, 3, height, width)
    # Colors of patches, and noise by which the lower bits of a mean matter.
    base = torch.rand(*shape[:2], height // side, width // side, generator=generator)
    base = base.repeat_interleave(side, 2).repeat_interleave(side, 3)
    pixels = F.pad(base, (0, width % side)) + 0.1 * normal(generator, *shape)
    bytes_ = (255 * pixels.clamp(0, 1)).round() / 255
    center, spread = (torch.tensor(x)[:, None, None] for x in (mean, std))
    patches = images * (height // side) * (width // side)
    tensors = {
        "images": (bytes_ - center) / spread,
        "tokens": normal(generator, patches, dim),
        "weight": normal(generator, COLORS, dim),
    }
    settings = {"patch": side, "mean": mean, "std": std}
    return case("objective-masked-patch", settings, tensors)


# Of three bits of red, green and blue.
COLORS = 512


def distill(seed: int) -> Case:
    """A teacher's features of another scale than the student's, and not around 0."""
    rows = {"predicted": (BATCH, DIM), "target": (BATCH, DIM), "anchors": (7, DIM)}
    tensors = draw(seed, rows)
    tensors["target"] = 0.01 + 0.003 * tensors["target"]
    losses = dict.fromkeys(("cosine", "mse", "prototypes"), 0.0)
    settings = {"batch": BATCH, "dim": DIM, "prototypes": 7, "losses": losses}
    settings |= {"student_temp": 0.5, "teacher_temp": 0.2}
    return case("objective-distill", settings, tensors)


def dinov2(seed: int, centering: str) -> Case:
    """Four crops; two of six views have masked patches, one and three of them."""
    batch, views, prototypes, masked = 3, 4, 6, 4
    settings = {"batch": batch, "views": views, "prototypes": prototypes, "dim": DIM}
    settings |= {"masked": masked, "centering": centering}
    settings |= {"sinkhorn_iterations": 3, "student_temp": 0.1, "teacher_temp": 0.2}
    settings |= {"patch_weight": 0.7, "koleo_weight": 0.1}
    shapes = {
        "student_view": (views * batch, prototypes),
        "teacher_view": (2 * batch, prototypes),
        "student_patch": (masked, prototypes),
        "teacher_patch": (masked, prototypes),
        "center_view": (prototypes,),
        "center_patch": (prototypes,),
        "features": (2 * batch, DIM),
    }
    tensors = draw(seed, shapes)
    if centering == "sinkhorn":
        del tensors["center_view"], tensors["center_patch"]
    # All views of all images count alike, and in each all masked patches.
    tensors["patch_weights"] = torch.tensor([1, 1 / 3, 1 / 3, 1 / 3]) / (2 * batch)
    return case("objective-dinov2", settings, tensors)


def objective_cases() -> dict[str, Callable[[], Case]]:
    """Makers of the cases by folder name; every seed stands here."""
    box = {"drawn_lambda": 0.3, "box_y0_y1_x0_x1": [1, 4, 0, 2]}
    return {
        "objective-byol": partial(byol, 101),
        "objective-densecl": partial(densecl, 102),
        "objective-dinov2-sinkhorn": partial(dinov2, 103, "sinkhorn"),
        "objective-dinov2-softmax": partial(dinov2, 118, "softmax"),
        "objective-distill": partial(distill, 105),
        "objective-igpt-autoregressive": partial(igpt, 106, "autoregressive"),
        "objective-igpt-bert": partial(igpt, 107, "bert"),
        "objective-masked-patch": partial(masked_patch, 108),
        "objective-moby": partial(moby, 109),
        "objective-moco2": partial(moco2, 110),
        "objective-mocov3": partial(mocov3, 111),
        "objective-simclr": partial(simclr, 112),
        "objective-supervised-cutmix": partial(supervised, 113, "cutmix", **box),
        "objective-supervised-mixup": partial(
            supervised, 114, "mixup", drawn_lambda=0.3
        ),
        "objective-supervised-smoothing": partial(supervised, 115, "label_smoothing"),
        "objective-swav": partial(swav, 116),
        "quantize-igpt": partial(quantize, 117),
    }
