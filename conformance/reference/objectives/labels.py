"""Supervised training: smoothed and mixed labels."""

import torch

from .results import Given, Results, cross_entropy, gradients, leaf


def supervised(settings: dict, given: Given) -> Results:
    """Cross-entropy to smoothed labels, mixed with those of the batch in reverse."""
    classes, smoothing = settings["classes"], settings["smoothing"]
    target = torch.full((len(given["labels"]), classes), smoothing / classes).double()
    target[torch.arange(len(target)), given["labels"]] += 1 - smoothing
    found = Results()
    if settings["mode"] != "label_smoothing":
        images, share = given["images"], settings["drawn_lambda"]
        mixed = share * images + (1 - share) * images.flip(0)
        if settings["mode"] == "cutmix":
            top, bottom, left, right = settings["box_y0_y1_x0_x1"]
            mixed = images.clone()
            pasted = images.flip(0)[:, :, top:bottom, left:right]
            mixed[:, :, top:bottom, left:right] = pasted
            area = (bottom - top) * (right - left)
            share = 1 - area / (images.shape[2] * images.shape[3])
        target = share * target + (1 - share) * target.flip(0)
        found.numbers["lambda"] = share
        found.tensors |= {"mixed": mixed, "target": target}
    logits = leaf(given["logits"])
    loss = cross_entropy(logits, target)
    found.numbers["loss"] = loss.item()
    found.tensors |= gradients(loss, {"grad_logits": logits})
    return found
