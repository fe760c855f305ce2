"""What a case must reproduce, and what several objectives need for it."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

Given = dict[str, Tensor]


@dataclass
class Results:
    """Numbers by place in `case.json`, such as `steps.0.loss`, and tensors by name."""

    numbers: dict[str, float] = field(default_factory=dict)
    tensors: Given = field(default_factory=dict)


def leaf(x: Tensor) -> Tensor:
    """A copy that gets a gradient."""
    return x.detach().clone().requires_grad_()


def gradients(loss: Tensor, leaves: Given) -> Given:
    """Gradients of a loss, each under the name that its leaf has here."""
    found = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
    return dict(zip(leaves, found))


def unit(rows: Tensor, dim: int = -1) -> Tensor:
    """Rows scaled to unit length."""
    return F.normalize(rows, dim=dim, eps=1e-12)


def steps(given: Given) -> list[Given]:
    """The tensors `step.N.NAME` by step."""
    found: list[Given] = []
    while True:
        start = f"step.{len(found)}."
        names = [name for name in given if name.startswith(start)]
        if not names:
            return found
        found.append({name.removeprefix(start): given[name] for name in names})


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of rows to distributions."""
    return -(targets * logits.log_softmax(-1)).sum(-1).mean()


def balanced(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Assignments `[samples, K]` by Sinkhorn and Knopp's iteration; rows sum to 1."""
    shares = ((scores - scores.max()) / epsilon).exp()
    for _ in range(iterations):
        shares = shares / shares.sum(0) / shares.shape[1]
        shares = shares / shares.sum(1, keepdim=True) / shares.shape[0]
    return shares / shares.sum(1, keepdim=True)
