"""MoCo-v2, MoBY, MoCo-v3, SimCLR, which tell images apart; BYOL, which does not."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .results import Given, Results, gradients, leaf, steps, unit


def beside_queue(
    queries: Tensor, keys: Tensor, queue: Tensor, temperature: float
) -> Tensor:
    """Logits `[B, 1 + K]` of a query's own key and of those in a queue `[D, K]`."""
    own = (queries * keys).sum(1, keepdim=True)
    return torch.cat([own, queries @ queue], 1) / temperature


def first_of(logits: Tensor) -> Tensor:
    """Mean cross-entropy where the first column is right."""
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))


class Queue:
    """Keys in columns `[D, K]`, of which the oldest are replaced."""

    def __init__(self, keys: Tensor, place: Tensor) -> None:
        self.keys, self.place = keys.clone(), int(place)

    def push(self, keys: Tensor) -> None:
        """Takes rows in at the place, and at the start again after the end."""
        length = self.keys.shape[1]
        self.keys[:, (self.place + torch.arange(len(keys))) % length] = keys.T
        self.place = (self.place + len(keys)) % length


def moco2(settings: dict, given: Given) -> Results:
    """One view against the other one's key and a queue."""
    queue = Queue(given["queue"], given["queue_ptr"])
    found = Results()
    for number, step in enumerate(steps(given)):
        q, keys = leaf(step["q"]), unit(step["k"])
        logits = beside_queue(unit(q), keys, queue.keys, settings["temperature"])
        loss = first_of(logits)
        found.tensors[f"step.{number}.logits"] = logits
        found.tensors |= gradients(loss, {f"step.{number}.grad_q": q})
        right = logits[:, :1] > logits[:, 1:]
        accuracy = 100.0 * right.all(1).double().mean().item()
        queue.push(keys)
        numbers = {"loss": loss.item(), "accuracy_top1": accuracy}
        numbers["queue_ptr_after"] = queue.place
        found.numbers |= {f"steps.{number}.{k}": v for k, v in numbers.items()}
    found.tensors["queue_after"] = queue.keys
    found.tensors["queue_ptr_after"] = torch.tensor([queue.place])
    return found


def moby(settings: dict, given: Given) -> Results:
    """Both views, each against the other one's key and the queue of such keys."""
    queues = [Queue(given[f"queue{i}"], given["queue_ptr"]) for i in (1, 2)]
    found = Results()
    for number, step in enumerate(steps(given)):
        predictions = [leaf(step["pred1"]), leaf(step["pred2"])]
        keys = [unit(step["proj1_k"]), unit(step["proj2_k"])]
        sides = []
        for own, other in ((0, 1), (1, 0)):
            logits = beside_queue(
                unit(predictions[own]),
                keys[other],
                queues[other].keys,
                settings["temperature"],
            )
            sides.append(first_of(logits))
        loss = sides[0] + sides[1]
        names = (f"step.{number}.grad_pred{i}" for i in (1, 2))
        found.tensors |= gradients(loss, dict(zip(names, predictions)))
        for queue, rows in zip(queues, keys):
            queue.push(rows)
        found.numbers[f"steps.{number}.loss"] = loss.item()
        found.numbers[f"steps.{number}.queue_ptr_after"] = queues[0].place
    for i, queue in enumerate(queues, 1):
        found.tensors[f"queue{i}_after"] = queue.keys
    found.tensors["queue_ptr_after"] = torch.tensor([queues[0].place])
    return found


def mocov3(settings: dict, given: Given) -> Results:
    """Both views among the keys of the batch; losses times twice the temperature."""
    temperature = settings["temperature"]
    queries = [leaf(given["q1"]), leaf(given["q2"])]
    own = torch.arange(settings["batch"])
    loss = torch.zeros((), dtype=torch.double)
    for q, k in zip(queries, (given["k2"], given["k1"])):
        logits = unit(q) @ unit(k).T / temperature
        loss = loss + 2 * temperature * F.cross_entropy(logits, own)
    tensors = gradients(loss, dict(zip(("grad_q1", "grad_q2"), queries)))
    return Results({"loss": loss.item()}, tensors)


def unit_by_square(rows: Tensor) -> Tensor:
    """Rows of unit length, by the rule of SimCLR and BYOL for tiny ones."""
    return rows * rows.square().sum(-1, keepdim=True).clamp_min(1e-12).rsqrt()


def simclr(settings: dict, given: Given) -> Results:
    """Every view of an image finds the other one among all views of all others."""
    batch = settings["batch"]
    hidden = leaf(given["hidden"])
    a, b = unit_by_square(hidden).split(batch)
    temperature, own = settings["temperature"], torch.arange(batch)
    # A view is not compared with itself.
    hide = -1e9 * torch.eye(batch, dtype=torch.double)
    logits_ab = a @ b.T / temperature
    loss = torch.zeros((), dtype=torch.double)
    for across, rows in ((logits_ab, a), (logits_ab.T, b)):
        within = rows @ rows.T / temperature + hide
        loss = loss + F.cross_entropy(torch.cat([across, within], 1), own)
    shares = logits_ab.softmax(1)
    right = (logits_ab.argmax(1) == own).double().mean().item()
    entropy = -(shares * shares.log()).sum(1).mean().item()
    numbers = {"loss": loss.item(), "contrast_entropy": entropy}
    # A share that is stored in single precision.
    numbers["contrast_accuracy"] = torch.tensor(right, dtype=torch.float32).item()
    tensors = gradients(loss, {"grad_hidden": hidden})
    return Results(numbers, tensors | {"logits_ab": logits_ab})


def byol(settings: dict, given: Given) -> Results:
    """Predictions of one view and the slow network's projections of the other one."""
    predictions = [leaf(given["prediction1"]), leaf(given["prediction2"])]
    targets = [given["projection2_target"], given["projection1_target"]]
    loss = torch.zeros((), dtype=torch.double)
    for prediction, target in zip(predictions, targets):
        difference = unit_by_square(prediction) - unit_by_square(target)
        loss = loss + difference.square().sum(1).mean()
    names = ("grad_prediction1", "grad_prediction2")
    return Results(
        {"loss": loss.item()}, gradients(loss, dict(zip(names, predictions)))
    )
