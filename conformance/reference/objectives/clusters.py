"""SwAV: views predict each other's balanced assignments to prototypes."""

import torch
from torch import Tensor

from .results import (
    Given,
    Results,
    balanced,
    cross_entropy,
    gradients,
    leaf,
    steps,
    unit,
)


def swav(settings: dict, given: Given) -> Results:
    """Steps without an optimizer: prototypes stay, the queue of embeddings fills."""
    prototypes = unit(given["prototypes"])
    batch, crops = settings["batch"], settings["crops"]
    queue = given["queue"].clone() if settings["queue_length"] else None
    found = Results({}, {"prototypes_after": prototypes})
    for number, step in enumerate(steps(given)):
        z, rows = leaf(step["z"]), leaf(prototypes)
        views = unit(z).split(batch)
        # A queue is used once its last row is set.
        used = queue is not None and bool((queue[0, -1] != 0).any())
        assigned: list[Tensor] = []
        for view in settings["crops_for_assign"]:
            samples = views[view].detach()
            if used:
                samples = torch.cat([queue[view], samples])
            epsilon, iterations = settings["epsilon"], settings["sinkhorn_iterations"]
            shares = balanced(samples @ prototypes.T, epsilon, iterations)
            assigned.append(shares[-batch:])
            found.tensors[f"step.{number}.assignment.{view}"] = assigned[-1]
        terms = []
        for source, targets in zip(settings["crops_for_assign"], assigned):
            for view in range(crops):
                if view != source:
                    logits = views[view] @ rows.T / settings["temperature"]
                    terms.append(cross_entropy(logits, targets))
        loss = torch.stack(terms).mean()
        leaves = {f"step.{number}.grad_z": z, f"step.{number}.grad_prototypes": rows}
        found.tensors |= gradients(loss, leaves)
        if queue is not None:
            new = torch.stack([views[v].detach() for v in settings["crops_for_assign"]])
            queue = torch.cat([new, queue], 1)[:, : settings["queue_length"]]
            found.tensors[f"step.{number}.queue_after"] = queue.clone()
        found.numbers[f"steps.{number}.loss"] = loss.item()
        found.numbers[f"steps.{number}.queue_used"] = used
    return found
