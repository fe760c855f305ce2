"""PVT-Small, version 1 (Wang et al., 2021): four stages, attention to a reduced map in the first
three, and a class token in the last."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import DropPath, MapConv, Mlp, drop_path_rates, heads_of, joined_heads

WIDTHS = (64, 128, 320, 512)
DEPTHS = (3, 4, 6, 3)
HEADS = (1, 2, 5, 8)
MLP_RATIOS = (8, 8, 4, 4)
REDUCTIONS = (8, 4, 2, 1)
PATCHES = (4, 2, 2, 2)
# Sides of the stages' maps at 224 pixels, for which the position tables are.
SIDES = (56, 28, 14, 7)

# Norms after embeddings and reductions keep PyTorch's own eps.
NORM_EPS = 1e-6


class Attention(nn.Module):
    """Attention of all tokens to those of a map of fewer, or to each other."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.reduces = reduction > 1
        if self.reduces:
            self.sr = MapConv(width, width, reduction, stride=reduction)
            self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        (queries,) = heads_of(self.q(x), 1, self.heads)
        if self.reduces:
            x = self.norm(self.sr(x.unflatten(1, size)).flatten(1, 2))
        keys, values = heads_of(self.kv(x), 2, self.heads)
        return self.proj(
            joined_heads(F.scaled_dot_product_attention(queries, keys, values))
        )


class Block(nn.Module):
    """A pre-norm block of attention and MLP."""

    def __init__(self, stage: int, drop_path: float) -> None:
        super().__init__()
        width = WIDTHS[stage]
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, HEADS[stage], REDUCTIONS[stage])
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, MLP_RATIOS[stage] * width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Embed(nn.Module):
    """Patches of a map as tokens."""

    def __init__(self, stage: int) -> None:
        super().__init__()
        inputs = WIDTHS[stage - 1] if stage else 3
        self.proj = MapConv(inputs, WIDTHS[stage], PATCHES[stage], stride=PATCHES[stage])
        self.norm = nn.LayerNorm(WIDTHS[stage])

    def forward(self, maps: Tensor) -> tuple[Tensor, tuple[int, int]]:
        maps = self.proj(maps)
        size = (int(maps.shape[1]), int(maps.shape[2]))
        return self.norm(maps.flatten(1, 2)), size


def positions(table: Tensor, size: tuple[int, int], side: int) -> Tensor:
    """The rows `[1, H * W, C]` of a position table for a map of this size."""
    if size == (side, side):
        return table
    image = table.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    image = F.interpolate(image, size, mode="bilinear")
    return image.flatten(2).transpose(1, 2)


class Pvt(nn.Module):
    """The whole network."""

    out_dim = WIDTHS[-1]

    def __init__(self, drop_path: float) -> None:
        super().__init__()
        last = len(WIDTHS) - 1
        for stage, (width, side) in enumerate(zip(WIDTHS, SIDES)):
            rows = side * side + (stage == last)
            self.register_parameter(f"pos_embed{stage + 1}", random(rows, width))
        self.cls_token = random(1, self.out_dim)
        rates = iter(drop_path_rates(drop_path, sum(DEPTHS)))
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(DEPTHS):
            blocks = [Block(stage, next(rates)) for _ in range(depth)]
            self.stages.append(nn.ModuleList([Embed(stage), *blocks]))
        self.norm = nn.LayerNorm(self.out_dim, eps=NORM_EPS)

    def placed(self, x: Tensor, size: tuple[int, int], stage: int) -> Tensor:
        """Tokens with their positions, in the last stage after the class token with its own."""
        table = getattr(self, f"pos_embed{stage + 1}")
        if stage + 1 < len(WIDTHS):
            return x + positions(table, size, SIDES[stage])
        x = x + positions(table[:, 1:], size, SIDES[stage])
        class_token = self.cls_token + table[:, :1]
        return torch.cat([class_token.expand(x.shape[0], -1, -1), x], 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = images.permute(0, 2, 3, 1)
        for stage, (embed, *blocks) in enumerate(self.stages):
            x, size = embed(maps)
            x = self.placed(x, size, stage)
            for block in blocks:
                x = block(x, size)
            if stage + 1 < len(WIDTHS):
                maps = x.unflatten(1, size)
        x = self.norm(x)
        return x[:, 0], x[:, 1:]


def random(rows: int, width: int) -> nn.Parameter:
    """A table of small random values."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, rows, width), std=0.02))


def build(form: str, drop_path: float) -> nn.Module:
    return Pvt(drop_path).to(memory_format=torch.channels_last)
