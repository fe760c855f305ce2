"""Swin-T: timm's. Its LayerNorm has eps 1e-5, not 1e-6 as in EsViT, which costs the same."""

import timm
import timm.layers
from torch import Tensor, nn


class Swin(nn.Module):
    """timm's network with the two features."""

    out_dim = 768

    def __init__(self, drop_path: float) -> None:
        super().__init__()
        self.network = timm.create_model(
            "swin_tiny_patch4_window7_224",
            num_classes=0,
            drop_path_rate=drop_path,
            strict_img_size=False,
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        region = self.network.forward_features(images).flatten(1, 2)
        return region.mean(1), region


def build(form: str, drop_path: float) -> nn.Module:
    """Attention as products and a softmax, or by PyTorch's function, experimental in timm."""
    timm.layers.set_fused_attn(enable=True, experimental=form == "fused")
    return Swin(drop_path)
