"""Residual networks with bottlenecks: torchvision's, of any width."""

import torch.nn.functional as F
from torch import Tensor, nn

from .common import Features, as_tokens

EXPANSION = 4


class Shortcut(nn.Sequential):
    """What takes a block's input to the width and size of its output."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        convolution = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """Convolutions of 1, 3 and 1 pixels; the one of 3 has the stride."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        changes = stride != 1 or inputs != outputs
        self.downsample = Shortcut(inputs, outputs, stride) if changes else None

    def forward(self, maps: Tensor) -> Tensor:
        x = self.bn1(self.conv1(maps)).relu()
        x = self.bn2(self.conv2(x)).relu()
        x = self.bn3(self.conv3(x))
        shortcut = maps if self.downsample is None else self.downsample(maps)
        return (x + shortcut).relu()


class ResNet(nn.Module):
    """The whole network without its classifier."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        if config.get("block", "bottleneck") != "bottleneck":
            raise NotImplementedError("blocks of two convolutions")
        inputs = config["stem_width"]
        self.conv1 = nn.Conv2d(3, inputs, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.stages = len(config["layers"])
        for i, (width, depth) in enumerate(zip(config["widths"], config["layers"])):
            blocks = []
            for j in range(depth):
                blocks.append(Bottleneck(inputs, width, 2 if i > 0 and j == 0 else 1))
                inputs = width * EXPANSION
            self.register_module(f"layer{i + 1}", nn.Sequential(*blocks))

    def features(self, images: Tensor) -> Features:
        maps = self.bn1(self.conv1(images)).relu()
        maps = F.max_pool2d(maps, 3, stride=2, padding=1)
        for i in range(self.stages):
            maps = getattr(self, f"layer{i + 1}")(maps)
        region = as_tokens(maps)
        view = region.mean(1)
        # A probe has the pooled output alone, of however many blocks it asks for.
        return Features(view, region, [view])
