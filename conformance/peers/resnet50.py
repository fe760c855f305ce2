"""ResNet-50: torchvision's. The region features are its last map."""

import torch
import torchvision
from torch import Tensor, nn

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class ResNet(nn.Module):
    """torchvision's network with the two features."""

    out_dim = 2048

    def __init__(self) -> None:
        super().__init__()
        network = torchvision.models.resnet50()
        self.stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        self.stages = nn.Sequential(
            network.layer1, network.layer2, network.layer3, network.layer4
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.stages(self.stem(images))
        return maps.mean((2, 3)), maps.flatten(2).transpose(1, 2)


def build(form: str, drop_path: float) -> nn.Module:
    """In one of PyTorch's two memory formats: maps take that of the weights."""
    if drop_path > 0:
        raise ValueError("torchvision's ResNet has no stochastic depth")
    return ResNet().to(memory_format=FORMATS[form])
