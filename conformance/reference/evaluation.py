"""k-NN classification, the correspondence measure and the attention mask."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CORRESPONDENCE_PAIRS = 10


@dataclass(frozen=True)
class Accuracy:
    """Per cent of queries; the pair is what the order of tied classes can change."""

    top1: float
    top5: float
    top1_range: tuple[float, float]
    top5_range: tuple[float, float]


def knn_scores(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    k: int,
    temperature: float,
    num_classes: int,
) -> Tensor:
    """`[queries, classes]`: summed weights of the k most similar training features.

    A `k` above the size of the training set means the whole set.
    """
    similarity, index = (test @ train.T).topk(min(k, len(train)), dim=1)
    weights = (similarity / temperature).exp()
    scores = weights.new_zeros(len(test), num_classes)
    return scores.scatter_add(1, train_labels[index], weights)


def top_n(scores: Tensor, labels: Tensor, n: int) -> tuple[float, tuple[float, float]]:
    """Per cent of queries whose class is among the best n, and its tie range.

    Equal scores (most often zeros: classes with no neighbour) rank by class number.
    """
    ranked = scores.sort(dim=1, descending=True, stable=True).indices[:, :n]
    hits = (ranked == labels[:, None]).any(1)
    own = scores.gather(1, labels[:, None])
    surely = (scores >= own).sum(1) <= n
    perhaps = (scores > own).sum(1) < n
    lowest, value, highest = (
        100.0 * x.sum().item() / len(labels) for x in (surely, hits, perhaps)
    )
    return value, (lowest, highest)


def knn_accuracy(scores: Tensor, labels: Tensor) -> Accuracy:
    """Top-1 and top-5; with fewer than five classes, top-5 is top-all."""
    top1, range1 = top_n(scores, labels, 1)
    top5, range5 = top_n(scores, labels, 5)
    return Accuracy(top1, top5, range1, range5)


@dataclass(frozen=True)
class Correspondence:
    """Matches between the cells of a view and those of its mirror image."""

    best_match: Tensor
    similarity: Tensor
    accuracy: float
    distance_error: float
    next_similarity: float  # of the first cell that is not counted


def correspondence(
    features1: Tensor, features2: Tensor, grid: int, stride: int
) -> Correspondence:
    """Compares the most similar cells with where the mirror really put them."""
    similarities = F.normalize(features1, dim=-1) @ F.normalize(features2, dim=-1).T
    similarity, best = similarities.max(1)
    order = similarity.sort(descending=True, stable=True).indices
    counted = order[:CORRESPONDENCE_PAIRS]
    found = cell_centres(best[counted], grid, stride)
    truth = cell_centres(counted, grid, stride)
    truth[:, 0] = grid * stride - truth[:, 0]
    error = (found - truth).norm(dim=1)
    return Correspondence(
        best,
        similarity,
        (error == 0).double().mean().item(),
        error.mean().item(),
        similarity[order[CORRESPONDENCE_PAIRS]].item(),
    )


def cell_centres(cells: Tensor, grid: int, stride: int) -> Tensor:
    """`(x, y)` in pixels of cells numbered row by row."""
    xy = torch.stack([cells % grid, cells // grid], 1)
    return (xy * stride + stride / 2).double()


def attention_entropy(attention: Tensor) -> Tensor:
    """Entropy of each row in bits; a weight of zero counts as zero."""
    return -(torch.xlogy(attention, attention)).sum(-1) / torch.log(torch.tensor(2.0))


def attention_mask(attention: Tensor, mass: float = 0.6) -> Tensor:
    """The smallest set of cells of each row that holds `mass` of its weight."""
    values, order = attention.sort(dim=-1)
    values = values / values.sum(-1, keepdim=True)
    kept = values.cumsum(-1) > 1 - mass
    return torch.zeros_like(kept).scatter(-1, order, kept)
