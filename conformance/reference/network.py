"""Projection heads and the multi-crop forward pass of student and teacher."""

from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .swin import Swin, SwinConfig


@dataclass(frozen=True)
class HeadConfig:
    """Sizes of a projection head."""

    prototypes: int
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    norm_last_layer: bool = True
    use_bn: bool = False


class PrototypeLayer(nn.Module):
    """Weight-normalised linear layer without bias."""

    def __init__(self, dim: int, prototypes: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1))
        self.weight_v = nn.Parameter(torch.randn(prototypes, dim))

    def forward(self, x: Tensor) -> Tensor:
        row_norm = self.weight_v.norm(dim=1, keepdim=True)
        return x @ (self.weight_g * self.weight_v / row_norm).T


class ProjectionHead(nn.Module):
    """Three-layer MLP, L2 normalisation, then the prototypes."""

    def __init__(self, in_dim: int, config: HeadConfig) -> None:
        super().__init__()
        hidden = config.hidden_dim
        layers: list[nn.Module] = []
        for width in (in_dim, hidden):
            layers.append(nn.Linear(width, hidden))
            if config.use_bn:
                layers.append(nn.BatchNorm1d(hidden))
            layers.append(nn.GELU())
        layers.append(nn.Linear(hidden, config.bottleneck_dim))
        self.mlp = nn.Sequential(*layers)
        self.last_layer = PrototypeLayer(config.bottleneck_dim, config.prototypes)
        self.last_layer.weight_g.requires_grad = not config.norm_last_layer

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(F.normalize(self.mlp(x), dim=-1, eps=1e-12))


@dataclass
class CropOutputs:
    """Results for a list of crops; rows are crop-major, then image, then token."""

    view_logits: Tensor  # [crops * B, K]
    region_logits: Tensor | None  # [sum over crops of B * tokens, K]
    region_features: Tensor | None  # the same rows, [.., C]
    tokens_per_crop: list[int]


class SelfSupervisedNetwork(Swin):
    """Backbone with a view head and, for the region task, a region head beside it."""

    def __init__(
        self, backbone: SwinConfig, head: HeadConfig, region_task: bool
    ) -> None:
        super().__init__(backbone)
        self.head = ProjectionHead(backbone.out_dim, head)
        self.head_dense = (
            ProjectionHead(backbone.out_dim, head) if region_task else None
        )

    def forward(self, crops: list[Tensor]) -> CropOutputs:
        """Runs consecutive crops of one size as one batch; each head runs once.

        The heads see all crops together, which matters with BatchNorm in the head.
        """
        views: list[Tensor] = []
        regions: list[Tensor] = []
        tokens_per_crop: list[int] = []
        for _, run in groupby(crops, key=lambda crop: crop.shape[-2:]):
            same_size = list(run)
            out = self.features(torch.cat(same_size))
            views.append(out.view)
            regions.append(out.region.flatten(0, 1))
            tokens_per_crop += [out.region.shape[1]] * len(same_size)
        view_logits = self.head(torch.cat(views))
        if self.head_dense is None:
            return CropOutputs(view_logits, None, None, tokens_per_crop)
        features = torch.cat(regions)
        region_logits = self.head_dense(features)
        return CropOutputs(view_logits, region_logits, features, tokens_per_crop)
