"""Backbones beside Swin, with the parameter names of official checkpoints."""

from torch import nn

from .common import Features
from .cvt import Cvt
from .igpt import Igpt
from .pvt import Pvt
from .resnet import ResNet
from .vil import Vil
from .vit import Vit

__all__ = ["Features", "build"]


def build(settings: dict) -> nn.Module:
    """The network that a `backbone` case describes."""
    config, family = settings["config"], settings["family"]
    if family == "vit":
        return Vit(config, settings.get("position_resize", "esvit"))
    others = {"cvt": Cvt, "igpt": Igpt, "pvt": Pvt, "resnet": ResNet, "vil": Vil}
    if family not in others:
        raise NotImplementedError(f"networks of family `{family}`")
    return others[family](config)
