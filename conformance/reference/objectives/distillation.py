"""Distillation, and the terms of DINOv2."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .results import Given, Results, balanced, cross_entropy, gradients, leaf, unit

# Added to the variance of a teacher's features.
VARIANCE_EPS = 1e-6
# Keeps the logarithm of a distance finite.
DISTANCE_EPS = 1e-8


def distill(settings: dict, given: Given) -> Results:
    """Each way to compare projected features with a teacher's: the mean over rows."""
    target, found = given["target"], Results()
    student_temp, teacher_temp = settings["student_temp"], settings["teacher_temp"]
    anchors = unit(given["anchors"])
    for way in settings["losses"]:
        predicted = leaf(given["predicted"])
        if way == "cosine":
            loss = (1 - F.cosine_similarity(predicted, target, eps=1e-12)).mean()
        elif way == "mse":
            variance = target.var(1, correction=0, keepdim=True) + VARIANCE_EPS
            standardized = (target - target.mean(1, keepdim=True)) / variance.sqrt()
            loss = (predicted - standardized).square().mean()
        else:
            shares = (unit(target) @ anchors.T / teacher_temp).softmax(1)
            loss = cross_entropy(unit(predicted) @ anchors.T / student_temp, shares)
        found.numbers[f"losses.{way}"] = loss.item()
        found.tensors |= gradients(loss, {f"grad_predicted.{way}": predicted})
    return found


def koleo(features: Tensor) -> Tensor:
    """Minus the mean logarithm of the distance to the nearest other unit row."""
    rows = unit(features)
    with torch.no_grad():
        similarity = rows @ rows.T - 4 * torch.eye(len(rows)).double()
        nearest = similarity.argmax(1)
    distances = F.pairwise_distance(rows, rows[nearest], eps=DISTANCE_EPS)
    return -(distances + DISTANCE_EPS).log().mean()


def dinov2(settings: dict, given: Given) -> Results:
    """Views, masked patches and KoLeo; targets are centered or balanced."""

    def distributions(name: str) -> Tensor:
        logits, temperature = given[f"teacher_{name}"], settings["teacher_temp"]
        if settings["centering"] == "sinkhorn":
            return balanced(logits, temperature, settings["sinkhorn_iterations"])
        return ((logits - given[f"center_{name}"]) / temperature).softmax(1)

    names = ("student_view", "student_patch", "features")
    leaves = {name: leaf(given[name]) for name in names}
    temperature, batch = settings["student_temp"], settings["batch"]
    views = (leaves["student_view"] / temperature).split(batch)
    targets = distributions("view").split(batch)
    pairs = [(t, s) for t in range(2) for s in range(len(views)) if s != t]
    view = torch.stack([cross_entropy(views[s], targets[t]) for t, s in pairs]).mean()
    logs = (leaves["student_patch"] / temperature).log_softmax(1)
    of_patches = -(distributions("patch") * logs).sum(1)
    patch = (given["patch_weights"] * of_patches).sum()
    spread = koleo(leaves["features"][:batch]) + koleo(leaves["features"][batch:])
    loss = view + settings["patch_weight"] * patch + settings["koleo_weight"] * spread
    parts = {"loss_view": view, "loss_patch": patch, "loss_koleo": spread, "loss": loss}
    tensors = gradients(loss, {f"grad_{name}": x for name, x in leaves.items()})
    return Results({name: value.item() for name, value in parts.items()}, tensors)
