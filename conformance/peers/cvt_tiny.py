"""CvT (Wu et al., 2021) in the form that EsViT trains: attention in windows that are never shifted,
after a depthwise convolution of maps that are padded to whole windows."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import DropPath, MapConv, drop_path_rates, heads_of, joined_heads

WIDTHS = (64, 192, 384, 768)
DEPTHS = (2, 2, 6, 2)
HEADS = (1, 3, 6, 12)
WINDOW = 7
MLP_RATIO = 4
# Side, stride and padding of the filters that make the tokens of a stage.
FILTERS = ((7, 4, 2), (3, 2, 1), (3, 2, 1), (3, 2, 1))

# QuickGELU is x * sigmoid(1.702 x).
QUICK_GELU = 1.702


def in_windows(maps: Tensor, window: int) -> Tensor:
    """`[B, H, W, C]`, its sides multiples of the window's, as `[B * windows, window^2, C]`."""
    b, height, width, channels = maps.shape
    x = maps.view(b, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def as_maps(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `in_windows`."""
    channels = windows.shape[-1]
    x = windows.view(-1, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


class Attention(nn.Module):
    """Attention in windows; products are scaled by the width of all heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = width**-0.5
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.batch_norm = nn.BatchNorm2d(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, maps: Tensor) -> Tensor:
        height, width = int(maps.shape[1]), int(maps.shape[2])
        window = min(WINDOW, height, width)
        down, right = -height % window, -width % window
        if down or right:
            maps = F.pad(maps, (0, 0, 0, right, 0, down))
        mixed = self.batch_norm(self.depthwise(maps.permute(0, 3, 1, 2)))
        windows = in_windows(mixed.permute(0, 2, 3, 1), window)
        queries, keys, values = heads_of(self.qkv(windows), 3, self.heads)
        attended = F.scaled_dot_product_attention(queries, keys, values, scale=self.scale)
        maps = as_maps(joined_heads(attended), window, height + down, width + right)
        return self.proj(maps[:, :height, :width])


class Mlp(nn.Module):
    """Two linear layers with QuickGELU between them.

    QuickGELU(x) is SiLU(1.702 x) / 1.702, and SiLU is one pass over memory: the factors go into
    the weights, which are much smaller than the tokens.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.fc1, self.fc2
        x = F.silu(F.linear(x, first.weight * QUICK_GELU, first.bias * QUICK_GELU))
        return F.linear(x, second.weight / QUICK_GELU, second.bias)


class Block(nn.Module):
    """A pre-norm block of attention and MLP."""

    def __init__(self, stage: int, drop_path: float) -> None:
        super().__init__()
        width = WIDTHS[stage]
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, HEADS[stage])
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, MLP_RATIO * width)
        self.drop_path = DropPath(drop_path)

    def forward(self, maps: Tensor) -> Tensor:
        maps = maps + self.drop_path(self.attn(self.norm1(maps)))
        return maps + self.drop_path(self.mlp(self.norm2(maps)))


class Embed(nn.Module):
    """Overlapping patches of a map as tokens."""

    def __init__(self, stage: int) -> None:
        super().__init__()
        inputs = WIDTHS[stage - 1] if stage else 3
        side, stride, padding = FILTERS[stage]
        self.proj = MapConv(inputs, WIDTHS[stage], side, stride, padding)
        self.norm = nn.LayerNorm(WIDTHS[stage])

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm(self.proj(maps))


class Cvt(nn.Module):
    """The whole network."""

    out_dim = WIDTHS[-1]

    def __init__(self, drop_path: float) -> None:
        super().__init__()
        rates = iter(drop_path_rates(drop_path, sum(DEPTHS)))
        stages = []
        for stage, depth in enumerate(DEPTHS):
            blocks = [Block(stage, next(rates)) for _ in range(depth)]
            stages.append(nn.Sequential(Embed(stage), *blocks))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(self.out_dim)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.stages(images.permute(0, 2, 3, 1))
        region = self.norm(maps.flatten(1, 2))
        return region.mean(1), region


def build(form: str, drop_path: float) -> nn.Module:
    return Cvt(drop_path).to(memory_format=torch.channels_last)
