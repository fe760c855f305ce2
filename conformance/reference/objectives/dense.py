"""DenseCL: contrast of whole views, and of the most similar cells of their maps."""

import torch

from .contrast import Queue, beside_queue, first_of
from .results import Given, Results, gradients, leaf, steps, unit


def densecl(settings: dict, given: Given) -> Results:
    """Both losses, weighted, and a queue of each."""
    queues = [Queue(given[name], given[f"{name}_ptr"]) for name in ("queue", "queue2")]
    weight, temperature = settings["loss_lambda"], settings["temperature"]
    found = Results()
    for number, step in enumerate(steps(given)):
        q, q_grid = leaf(step["q"]), leaf(step["q_grid"])
        k, k_grid = unit(step["k"]), unit(step["k_grid"], dim=1)
        # Cells of the backbone's maps say which cells of the heads' go together.
        own, other = (unit(step[f"{side}_features"].flatten(2), dim=1) for side in "qk")
        match = (own.transpose(1, 2) @ other).argmax(-1)
        matched = k_grid.gather(2, match[:, None].expand_as(k_grid))
        cells = (
            x.transpose(1, 2).flatten(0, 1) for x in (unit(q_grid, dim=1), matched)
        )
        logits = beside_queue(unit(q), k, queues[0].keys, temperature)
        single = (1 - weight) * first_of(logits)
        dense = weight * first_of(beside_queue(*cells, queues[1].keys, temperature))
        start = f"step.{number}."
        found.tensors[f"{start}match"] = match
        leaves = {f"{start}grad_q": q, f"{start}grad_q_grid": q_grid}
        found.tensors |= gradients(single + dense, leaves)
        queues[0].push(k)
        queues[1].push(unit(step["k_dense_mean"]))
        losses = {"loss": single + dense, "loss_single": single, "loss_dense": dense}
        numbers = {name: value.item() for name, value in losses.items()}
        numbers["queue_ptr_after"] = queues[0].place
        found.numbers |= {f"steps.{number}.{k}": v for k, v in numbers.items()}
    for name, queue in zip(("queue", "queue2"), queues):
        found.tensors[f"{name}_after"] = queue.keys
        found.tensors[f"{name}_ptr_after"] = torch.tensor([queue.place])
    return found
