"""Published full-size fixtures: hashed weights in, a few printed numbers out.

The expected numbers were printed by the official code in f32, with five or six digits.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .augment import apply
from .evaluation import (
    attention_entropy,
    attention_mask,
    correspondence,
    knn_accuracy,
    knn_scores,
)
from .hashing import fill, hashed, hashed_image
from .network import CropOutputs, HeadConfig, ProjectionHead
from .objective import Centers, TeacherTemperature, Weights, loss, mixup_target
from .swin import BackboneOutput, Swin, SwinConfig
from .training import Lars, cosine_schedule

# (what, computed, expected, absolute tolerance)
Comparison = tuple[str, list[float], list[float], float]

# One unit of the last printed digit; sums over many values get a few units.
DIGITS5, DIGITS6 = 2e-5, 2e-6


def swin_tiny(window: int) -> Swin:
    """Swin-T with hashed weights."""
    config = SwinConfig(224, 4, 96, (2, 2, 6, 2), (3, 6, 12, 24), window, 4.0)
    network = Swin(config)
    fill(network)
    return network.eval()


SWIN_EXPECTED = {
    # (window, size): view[0..4], sum of view, region token 5 [0..3], L2 of region
    (
        7,
        224,
    ): "-.30677 .59618 .85016 -1.81938|-3.15427|-.50774 1.28456 1.03918|195.20477",
    (7, 96): ".34479 1.12567 1.30366 -.83448|-2.24872|.30319 1.99867 .7559|83.50333",
    (
        14,
        224,
    ): "-.27421 .59755 .90143 -1.84592|-3.11707|-.45523 .72317 .93462|195.29366",
    (14, 96): ".75565 .87406 .3935 -.49457|-1.57043|.75244 .91009 .79243|83.49523",
}


@torch.no_grad()
def swin_fixtures() -> Iterator[Comparison]:
    """Swin-T at both windows and both crop sizes, probe feature and attention."""
    for window in (7, 14):
        network = swin_tiny(window)
        for size in (224, 96):
            out = network.features(hashed_image(size))
            expected = SWIN_EXPECTED[window, size].split("|")
            parts = swin_numbers(out)
            tolerances = (DIGITS5, 3e-4, DIGITS5, 2e-4)
            names = ("view", "sum of view", "region", "L2 of region")
            for name, part, text, tol in zip(names, parts, expected, tolerances):
                numbers = [float(x) for x in text.split()]
                yield f"swin-t w{window} {size} {name}", part, numbers, tol
            if (window, size) == (7, 224):
                yield from probe_and_attention(out)


def swin_numbers(out: BackboneOutput) -> list[list[float]]:
    """The numbers printed for a backbone."""
    view, region = out.view[0], out.region[0]
    return [
        view[:4].tolist(),
        [view.sum().item()],
        region[5, :3].tolist(),
        [region.norm().item()],
    ]


def probe_and_attention(out: BackboneOutput) -> Iterator[Comparison]:
    """Four-block probe feature and last attention of Swin-T W7 at 224."""
    probe = out.last_blocks(4)[0]
    yield "probe width", [float(len(probe))], [2304.0], 0
    yield "probe sum", [probe.sum().item()], [-39.88349], 5e-4
    values = probe[[0, 384, 768, 1536]].tolist()
    yield "probe values", values, [0.49329, -0.81538, 0.09148, -0.30677], DIGITS5
    shape = [float(n) for n in out.last_attention.shape]
    yield "attention shape", shape, [1.0, 24.0, 49.0, 49.0], 0
    keys = out.last_attention[0, 0, 9, :4].tolist()
    yield "attention", keys, [0.013627, 0.020901, 0.015082, 0.010111], DIGITS6


@torch.no_grad()
def head_fixture() -> Iterator[Comparison]:
    """A small projection head."""
    head = ProjectionHead(8, HeadConfig(16, hidden_dim=12, bottleneck_dim=6))
    fill(head)
    rows = head(hashed(2000, [3, 8]))[:, :4].flatten().tolist()
    expected = [0.411922, 0.078899, 0.20165, -0.500888]
    expected += [0.070152, 0.147677, 0.094266, 0.557065]
    expected += [-0.270243, 0.045133, 0.839701, 0.219187]
    yield "head rows", rows, expected, DIGITS6


class HashedObjective:
    """The small objective fixture: four crops, two images, five prototypes."""

    def __init__(self, region: bool) -> None:
        tokens = [4, 4, 2, 2]
        self.student = CropOutputs(leaf(1, [8, 5]), None, None, tokens)
        self.teacher = CropOutputs(hashed(2, [4, 5]), None, None, [4, 4])
        self.centers = Centers(torch.zeros(1, 5))
        self.weights = Weights.default(region)
        if region:
            self.student.region_logits = leaf(3, [24, 5])
            self.student.region_features = hashed(5, [24, 3])
            self.teacher.region_logits = hashed(4, [16, 5])
            self.teacher.region_features = hashed(6, [16, 3])
            self.centers.grid = torch.zeros(1, 5)

    def loss(self, epoch: int, mixup: list[Tensor] | None = None) -> Tensor:
        """The loss at an epoch of the published temperature schedule."""
        temperature = TeacherTemperature(0.04, 0.07, 30, 100).at(epoch)
        networks = (self.student, self.teacher, self.centers)
        return loss(*networks, temperature, 0.1, self.weights, mixup)


def leaf(stream: int, shape: list[int]) -> Tensor:
    """A hashed tensor that collects a gradient."""
    return hashed(stream, shape).requires_grad_()


def objective_fixtures() -> Iterator[Comparison]:
    """Losses, gradients and centres."""
    dense = HashedObjective(region=True)
    first = dense.loss(0)
    first.backward()
    dense.centers.update(dense.teacher)
    assert dense.centers.grid is not None
    assert dense.student.view_logits.grad is not None
    assert dense.student.region_logits is not None
    assert dense.student.region_logits.grad is not None
    yield "dense loss", [first.item()], [8.402898], 1e-5
    center = [-0.018811, 0.064982, 0.003913, 0.030025, -0.01128]
    yield "center", dense.centers.view[0].tolist(), center, DIGITS6
    grid = [-0.007342, 0.005995, -0.001919, -0.018885, -0.008416]
    yield "center_grid", dense.centers.grid[0].tolist(), grid, DIGITS6
    row = [0.026771, -0.198348, 0.382144, -0.211137, 0.00057]
    yield "view gradient", dense.student.view_logits.grad[0].tolist(), row, DIGITS6
    row = [0.022819, 0.000011, 0.033959, -0.025978, -0.030812]
    gradient = dense.student.region_logits.grad[0].tolist()
    yield "region gradient", gradient, row, DIGITS6
    yield "dense loss, second call", [dense.loss(29).item()], [8.382052], 1e-5
    view = HashedObjective(region=False)
    yield "view loss", [view.loss(0).item()], [8.798439], 1e-5
    mixed = view.loss(0, [mixup_target(0.3, 2)] * 4).item()
    yield "view loss, mixed", [mixed], [7.523733], 1e-5


def schedule_fixtures() -> Iterator[Comparison]:
    """Cosine schedules and one LARS step."""
    lr = cosine_schedule(1e-3, 1e-6, 10, 5, 2)
    expected = {0: 0, 1: 1.11111111e-4, 9: 1e-3, 10: 1e-3, 11: 9.98460208e-4}
    expected |= {30: 5.005e-4, 49: 2.5397918e-6}
    values = [float(lr[i]) for i in expected]
    yield "lr schedule", values, list(expected.values()), 1e-12
    momentum = cosine_schedule(0.996, 1, 10, 5)
    expected = {0: 0.996, 1: 0.996003947, 25: 0.998, 49: 0.999996053}
    values = [float(momentum[i]) for i in expected]
    yield "EMA schedule", values, list(expected.values()), 1e-9
    w, b = leaf(11, [2, 3]), leaf(12, [3])
    w.grad, b.grad = hashed(13, [2, 3]), hashed(14, [3])
    groups = [{"params": [w], "weight_decay": 0.04}, {"params": [b]}]
    Lars(groups, lr=0.5).step()
    after = [-0.853116, 0.76792, -0.878982, 0.037363, -0.958242, -0.747526]
    yield "LARS matrix", w.flatten().tolist(), after, DIGITS6
    yield "LARS vector", b.tolist(), [0.60172, -1.364341, -0.996615], DIGITS6


def knn_fixtures() -> Iterator[Comparison]:
    """Weighted neighbours over seven classes."""
    train, test = (
        F.normalize(hashed(stream, [rows, 6]), dim=1)
        for stream, rows in ((21, 40), (22, 12))
    )
    train_labels, labels = 5 * torch.arange(40) % 7, 3 * torch.arange(12) % 7
    for k in (10, 20, 3):
        scores = knn_scores(train, train_labels, test, k, 0.07, 7)
        accuracy = knn_accuracy(scores, labels)
        yield f"top-1, k={k}", [accuracy.top1], [8.3333], 1e-4
        if k != 3:  # three neighbours leave ties among the best five
            yield f"top-5, k={k}", [accuracy.top5], [83.3333], 1e-4
        if k == 10:
            ranked = scores.sort(dim=1, descending=True, stable=True).indices[:3, :3]
            classes = [float(c) for c in ranked.flatten()]
            yield "ranked classes", classes, [5, 6, 2, 5, 3, 1, 5, 2, 6], 0


def correspondence_fixtures() -> Iterator[Comparison]:
    """Random and mirrored features; attention masks."""
    first = hashed(31, [49, 8])
    mirrored = first.view(7, 7, 8).flip(1).reshape(49, 8) + 0.35 * hashed(33, [49, 8])
    # accuracy, distance, similarity of the 11th cell, best pair and its similarity
    expected = (
        (hashed(32, [49, 8]), [0.1, 97.59553, 0.846038, 29, 21, 0.953786]),
        (mirrored, [1.0, 0, 0.970728, 8, 12, 0.985551]),
    )
    for name, (second, numbers) in zip(("random", "mirrored"), expected):
        found = correspondence(first, second, 7, 32)
        cell = int(found.similarity.argmax())
        values = [found.accuracy, found.distance_error, found.next_similarity]
        values += [cell, int(found.best_match[cell]), found.similarity[cell].item()]
        yield f"correspondence, {name}", values, numbers, 1e-5
    attention = (3 * hashed(41, [2, 16])).softmax(-1)
    kept = attention_mask(attention)
    counts = [float(n) for n in kept.sum(1)]
    yield "attention mask, cells kept", counts, [2, 4], 0
    cells = [float(c) for c in kept[0].nonzero().flatten()]
    yield "attention mask, cells of row 0", cells, [2, 15], 0
    entropy = attention_entropy(attention).tolist()
    yield "attention entropy", entropy, [2.78824, 3.194], DIGITS5


PIXELS_EXPECTED: list[tuple[dict, list[float]]] = [
    ({"op": "gaussian_blur", "radius": 1.0}, [103, 118, 139]),
    ({"op": "gaussian_blur", "radius": 0.1}, [51, 227, 180]),
    ({"op": "gaussian_blur", "radius": 2.0}, [117, 110, 132]),
    ({"op": "solarize", "threshold": 128}, [51, 25, 75]),
    ({"op": "grayscale"}, [171, 171, 171]),
    ({"op": "brightness", "factor": 1.3}, [66, 255, 233]),
    ({"op": "contrast", "factor": 0.7}, [74, 199, 164]),
    ({"op": "saturation", "factor": 1.2}, [27, 241, 181]),
    ({"op": "hue", "factor": 0.07}, [51, 211, 230]),
]


def pixel_fixtures() -> Iterator[Comparison]:
    """One pixel, at (x, y) = (5, 7), of a hashed 16 x 16 image after each operation."""
    image = ((hashed(60, [16, 16, 3]) + 1) / 2 * 255).byte().numpy()
    for operation, expected in PIXELS_EXPECTED:
        pixel = [float(v) for v in apply(image, operation)[7, 5]]
        yield f"pixel after {operation['op']}", pixel, expected, 0
    resize = {"op": "resized_crop", "top": 0, "left": 0, "height": 16, "width": 16}
    resize |= {"interpolation": "bicubic", "antialias": True}
    smaller = apply(image, resize | {"size": 8})[3, 3]
    yield "bicubic to 8", [float(v) for v in smaller], [149, 132, 143], 0
    larger = apply(image, resize | {"size": 24})[11, 10]
    yield "bicubic to 24", [float(v) for v in larger], [197, 91, 140], 0


ALL: list[Callable[[], Iterator[Comparison]]] = [
    swin_fixtures,
    head_fixture,
    objective_fixtures,
    schedule_fixtures,
    knn_fixtures,
    correspondence_fixtures,
    pixel_fixtures,
]
