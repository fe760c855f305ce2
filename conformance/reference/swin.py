"""Swin backbone with the conventions of EsViT's checkpoints.

It differs from other Swin implementations in four ways that change numbers:
LayerNorm uses eps 1e-6; maps are padded after the first norm and the padding takes part
in attention unmasked; window and shift are fixed at construction by `img_size`,
whatever the size of the input; patch merging closes a stage rather than opening one.

Drop path is left out: every case is computed with rate 0.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6
# Added to the scores of token pairs that the cyclic shift brought together. It is not
# minus infinity, so that the softmax stays finite.
MASKED_SCORE = -100.0


@dataclass(frozen=True)
class SwinConfig:
    """Sizes of a Swin backbone; the lists have one entry a stage."""

    img_size: int
    patch_size: int
    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int
    mlp_ratio: float

    @classmethod
    def from_json(cls, config: dict) -> "SwinConfig":
        """Reads the `config` object of a case."""
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
        return cls(**values)

    @property
    def out_dim(self) -> int:
        """Width of the features after the last stage."""
        return self.embed_dim * 2 ** (len(self.depths) - 1)


def layer_norm(dim: int) -> nn.LayerNorm:
    """The one normalisation used throughout the backbone."""
    return nn.LayerNorm(dim, eps=LAYER_NORM_EPS)


def window_and_shift(resolution: int, window: int, block: int) -> tuple[int, int]:
    """Effective window and shift of a block, given its stage's design resolution."""
    if resolution <= window:
        return resolution, 0
    return window, (window // 2 if block % 2 == 1 else 0)


def partition_windows(x: Tensor, window: int) -> Tensor:
    """`[B, H, W, C]` to `[B * windows, window * window, C]`, row-major throughout."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, c)


def join_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `partition_windows`."""
    c = windows.shape[-1]
    x = windows.view(-1, height // window, width // window, window, window, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, c)


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each (query, key) pair of a window."""
    cells = torch.arange(window)
    y, x = torch.meshgrid(cells, cells, indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy = y[:, None] - y[None, :] + window - 1
    dx = x[:, None] - x[None, :] + window - 1
    return dy * (2 * window - 1) + dx


def shift_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """`[windows, n, n]`: 0 for pairs that were near before the shift, else -100."""

    def bands(size: int) -> Tensor:
        band = torch.zeros(size)
        band[size - window : size - shift] = 1
        band[size - shift :] = 2
        return band

    labels = bands(height)[:, None] * 3 + bands(width)[None, :]
    labels = partition_windows(labels[None, :, :, None], window).squeeze(-1)
    differs = labels[:, :, None] != labels[:, None, :]
    return differs.float() * MASKED_SCORE


class WindowAttention(nn.Module):
    """Multi-head attention inside each window, with a relative-position bias."""

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window - 1) ** 2, heads)
        )
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        # Official files store this index as a buffer; it is derived, so it is neither
        # written nor read here.
        index = relative_position_index(window)
        self.register_buffer("relative_position_index", index, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the output `[B * windows, n, C]` and the attention weights."""
        rows, n, c = x.shape
        qkv = self.qkv(x).view(rows, n, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index]
        scores = scores + bias.permute(2, 0, 1)
        if mask is not None:
            scores = scores.view(-1, mask.shape[0], self.heads, n, n)
            scores = (scores + mask[:, None]).view(rows, self.heads, n, n)
        attention = scores.softmax(-1)
        out = (attention @ v).transpose(1, 2).reshape(rows, n, c)
        return self.proj(out), attention


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Windowed attention and MLP, both behind a norm and beside a skip connection."""

    def __init__(
        self, dim: int, heads: int, window: int, shift: int, mlp_ratio: float
    ) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = layer_norm(dim)
        self.attn = WindowAttention(dim, window, heads)
        self.norm2 = layer_norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pads, shifts, attends and undoes both; `x` is the normalised map."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        padded_h, padded_w = x.shape[1:3]
        mask = None
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
            mask = shift_mask(padded_h, padded_w, self.window, self.shift)
        windows, attention = self.attn(partition_windows(x, self.window), mask)
        x = join_windows(windows, self.window, padded_h, padded_w)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width], attention

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        attended, attention = self.attend(self.norm1(x))
        x = x + attended
        return x + self.mlp(self.norm2(x)), attention


class PatchMerging(nn.Module):
    """Halves the map and doubles the width; an odd side gets one line of zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = layer_norm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        # Order of the four parities: (row, column) = (0,0), (1,0), (0,1), (1,1).
        parts = [x[:, r::2, c::2] for c in (0, 1) for r in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class PatchEmbed(nn.Module):
    """Cuts the image into patches; a partial patch at the end is dropped."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, stride=patch)
        self.norm = layer_norm(dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """Blocks at one resolution, followed by patch merging except in the last stage."""

    def __init__(self, config: SwinConfig, stage: int) -> None:
        super().__init__()
        dim = config.embed_dim * 2**stage
        resolution = config.img_size // config.patch_size // 2**stage
        self.blocks = nn.ModuleList()
        for block in range(config.depths[stage]):
            window, shift = window_and_shift(resolution, config.window_size, block)
            heads = config.num_heads[stage]
            self.blocks.append(SwinBlock(dim, heads, window, shift, config.mlp_ratio))
        last = stage == len(config.depths) - 1
        self.downsample = None if last else PatchMerging(dim)


@dataclass
class BackboneOutput:
    """What the backbone gives for one batch of images."""

    view: Tensor  # [B, C]: mean of the region tokens
    region: Tensor  # [B, N, C]: tokens after the final norm
    blocks: list[Tensor]  # each block's tokens, final norm applied in the last stage
    last_attention: Tensor  # [B * windows, heads, n, n] of the last block

    def last_blocks(self, count: int) -> Tensor:
        """Linear-probe feature: token means of the last blocks, oldest first."""
        return torch.cat([tokens.mean(1) for tokens in self.blocks[-count:]], -1)


class Swin(nn.Module):
    """The whole backbone; parameter names are those of the official checkpoints."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.patch_size, config.embed_dim)
        stages = range(len(config.depths))
        self.layers = nn.ModuleList(Stage(config, stage) for stage in stages)
        self.norm = layer_norm(config.out_dim)

    def features(self, images: Tensor) -> BackboneOutput:
        """Runs images `[B, 3, H, W]` of any size; the map need not be square."""
        x = self.patch_embed(images)
        blocks: list[Tensor] = []
        for stage in self.layers:
            for block in stage.blocks:
                x, attention = block(x)
                tokens = x.flatten(1, 2)
                blocks.append(tokens if stage.downsample else self.norm(tokens))
            if stage.downsample:
                x = stage.downsample(x)
        region = blocks[-1]
        return BackboneOutput(region.mean(1), region, blocks, attention)
