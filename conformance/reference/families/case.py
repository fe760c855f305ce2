"""What a `backbone` case of these families must reproduce."""

import torch
from torch import Tensor, nn

from ..objectives.results import Given, Results
from . import build
from .common import Features

# In official files and not needed here: stored twice, or for other tasks.
_PASSED_OVER = ("query_global.", "kv_global.", "proj_global.", "mask_token")


def network_of(settings: dict, given: Given) -> nn.Module:
    """The network with the parameters `param.*`, in their precision."""
    network = build(settings)
    names = [name for name in given if name.startswith("param.")]
    state = {name.removeprefix("param."): given[name] for name in names}
    kept = ("relative_position_index", "num_batches_tracked")
    state = {
        name: value
        for name, value in state.items()
        if not name.endswith(kept) and not any(part in name for part in _PASSED_OVER)
    }
    network = network.to(given["input.0"].dtype)
    loaded = network.load_state_dict(state, strict=False)
    missing = [name for name in loaded.missing_keys if not name.endswith(kept)]
    if missing or loaded.unexpected_keys:
        raise ValueError(f"other parameters: {missing}, {loaded.unexpected_keys}")
    return network


def outputs(features: Features, settings: dict) -> dict[str, Tensor]:
    """The tensors of an input under their names."""
    named = {"cls": features.view, "region": features.region}
    average = features.region.mean(1)
    numbers = {"": settings["n_last_blocks"]}
    numbers |= {f"_n{n}": n for n in settings.get("other_n_last_blocks", [])}
    for end, n in numbers.items():
        named[f"last_blocks{end}"] = features.last_blocks(n)
        if settings.get("patch_average", False):
            joined = torch.cat([features.last_blocks(n), average], -1)
            named[f"last_blocks_n{n}_avg"] = joined
    if features.last_attention is not None:
        named["last_attention"] = features.last_attention
    if features.registers is not None:
        named["registers"] = features.registers
    return named


def backbone(settings: dict, given: Given) -> Results:
    """Features; and of a pass in training, with running statistics and gradients."""
    network, found = network_of(settings, given).eval(), Results()
    with torch.no_grad():
        for i in range(settings["inputs"]):
            named = outputs(network.features(given[f"input.{i}"]), settings)
            found.tensors |= {f"{name}.{i}": value for name, value in named.items()}
    if settings.get("train", False):
        found.tensors |= training(network.train(), given)
    return found


def training(network: nn.Module, given: Given) -> Given:
    """A pass in training mode. The loss sums both features, weighted as given."""
    features = network.features(given["train.input"])
    named = {"cls": features.view, "region": features.region}
    found = {f"train.{name}": value.detach() for name, value in named.items()}
    for name, buffer in network.named_buffers():
        if not name.endswith("num_batches_tracked"):
            found[f"train.after.{name}"] = buffer.clone()
    if "train.grad_out.cls" in given:
        weighted = [
            (value * given[f"train.grad_out.{k}"]).sum() for k, value in named.items()
        ]
        torch.stack(weighted).sum().backward()
        for name, p in network.named_parameters():
            if p.requires_grad:
                found[f"train.grad.{name}"] = p.grad
    return found
