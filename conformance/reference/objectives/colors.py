"""Objectives that predict colors: iGPT by the official names, and masked patches."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .results import Given, Results, gradients, leaf

NORM_EPS = 1e-5


def norm(x: Tensor, gain: Tensor) -> Tensor:
    """RMS normalization."""
    return x * (x.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt() * gain


def block(x: Tensor, params: Given, causal: bool) -> Tensor:
    """A block of iGPT; the parameters of attention are `[heads, width of one, C]`."""
    normed = norm(x, params["ln_1/g"])
    q, k, v = (
        torch.einsum("bsf,hef->bhse", normed, params[f"attn/{part}_proj"])
        for part in "qkv"
    )
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    context = scores.softmax(-1) @ v
    x = x + torch.einsum("bhse,hef->bsf", context, params["attn/c_proj"])
    hidden = norm(x, params["ln_2/g"]) @ params["mlp/c_fc/w"]
    return x + hidden * (1.702 * hidden).sigmoid() @ params["mlp/c_proj/w"]


def igpt(settings: dict, given: Given) -> Results:
    """Cross-entropies of colors, all or hidden ones, and of a classifier."""
    start = "param.model/"
    names = [name for name in given if name.startswith(start)]
    params = {name.removeprefix(start): leaf(given[name]) for name in names}
    tokens, causal = given["tokens"], settings["mode"] == "autoregressive"
    x = params["wte"][tokens]
    if causal:
        first = params["sos"].expand(len(x), 1, -1)
        x = torch.cat([first, x[:, :-1]], 1)
    else:
        x = x * (given["masked"] == 0)[..., None]
    x = x + params["wpe"]
    for number in range(settings["layers"]):
        part = f"h{number}/"
        own = {k.removeprefix(part): v for k, v in params.items() if k.startswith(part)}
        x = block(x, own, causal)
    x = norm(x, params["ln_f/g"])
    logits = x @ params["wtet"].T
    of_tokens = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
    shown = torch.ones_like(of_tokens) if causal else given["masked"].to(of_tokens)
    # Every image counts alike, whatever the number of its hidden colors.
    generative = ((of_tokens * shown).sum(1) / shown.sum(1)).mean()
    of_classes = x.mean(1) @ params["clf/wclf"].T
    classifier = F.cross_entropy(of_classes, given["labels"])
    loss = generative + classifier
    right = (of_classes.argmax(1) == given["labels"]).double().mean().item()
    numbers = {
        "loss_generative": generative.item(),
        "loss_classifier": classifier.item(),
    }
    numbers |= {"loss": loss.item(), "classifier_accuracy": 100.0 * right}
    leaves = {f"grad.param.model/{name}": value for name, value in params.items()}
    return Results(numbers, gradients(loss, leaves) | {"out.logits": logits})


def quantize(settings: dict, given: Given) -> Results:
    """Bytes as numbers from -1 to 1, the nearest centers, and their bytes."""
    scaled = given["pixels"].double() / 127.5 - 1
    distances = (scaled[:, None] - given["clusters"]).square().sum(-1)
    ids = distances.argmin(1)
    back = (127.5 * (given["clusters"][ids] + 1)).round().to(torch.uint8)
    return Results({}, {"scaled": scaled, "ids": ids, "dequantized": back})


# Bits of a color channel that are predicted.
BITS = 3


def masked_patch(settings: dict, given: Given) -> Results:
    """The mean colors of patches, and their cross-entropy given tokens.

    All patches are hidden here, so that nothing is drawn.
    """
    images, side = given["images"], settings["patch"]
    mean, std = (torch.tensor(settings[k]).double() for k in ("mean", "std"))
    height, width = (length // side * side for length in images.shape[2:])
    hidden = images.clone()
    hidden[:, :, :height, :width] = 0
    bytes_ = 255 * (images * std[:, None, None] + mean[:, None, None])
    means = F.avg_pool2d(bytes_, side).flatten(2)
    # Of means of bytes only what is lost by the normalization is rounded.
    levels = ((means * side**2).round() / side**2 / 2 ** (8 - BITS)).floor().long()
    red, green, blue = levels.unbind(1)
    colors = (red << 2 * BITS | green << BITS | blue).flatten()
    tokens, weight = leaf(given["tokens"]), leaf(given["weight"])
    loss = F.cross_entropy(tokens @ weight.T, colors)
    tensors = gradients(loss, {"grad_tokens": tokens, "grad_weight": weight})
    return Results(
        {"loss": loss.item()}, tensors | {"hidden": hidden, "colors": colors}
    )
