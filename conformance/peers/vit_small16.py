"""ViT-S/16: timm's, with PyTorch's fused attention. At other sizes than 224 pixels its positions
are interpolated with antialiasing, in EsViT without."""

import timm
from torch import Tensor, nn


class Vit(nn.Module):
    """timm's network with the two features."""

    out_dim = 384

    def __init__(self, drop_path: float) -> None:
        super().__init__()
        self.network = timm.create_model(
            "vit_small_patch16_224",
            num_classes=0,
            drop_path_rate=drop_path,
            dynamic_img_size=True,
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.network.forward_features(images)
        return tokens[:, 0], tokens[:, 1:]


def build(form: str, drop_path: float) -> nn.Module:
    return Vit(drop_path)
