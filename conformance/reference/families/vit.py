"""Vision transformers in the forms of EsViT, DINO, DeiT and timm.

Tokens are class, distillation token, registers, then the patches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .common import Features, Mlp, as_tokens, join_heads, split_heads

LAYER_NORM_EPS = 1e-6


class Attention(nn.Module):
    """Attention of all tokens to each other."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        attention = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        return self.proj(join_heads(attention @ v)), attention


class LayerScale(nn.Module):
    """A factor for every channel of a branch."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Attention and MLP, both behind a norm and beside a skip connection."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        dim, scaled = config["embed_dim"], config.get("layer_scale", False)
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, config["num_heads"])
        self.ls1 = LayerScale(dim) if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * config["mlp_ratio"]))
        self.ls2 = LayerScale(dim) if scaled else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        attended, attention = self.attn(self.norm1(x))
        x = x + self.ls1(attended)
        return x + self.ls2(self.mlp(self.norm2(x))), attention


def resized(table: Tensor, size: tuple[int, int], rule: str) -> Tensor:
    """A square table `[n, C]` of positions for a map of another size."""
    side = int(len(table) ** 0.5)
    if (side, side) == size:
        return table
    image = table.T.unflatten(1, (side, side))[None]
    if rule == "dino":
        scale = tuple((length + 0.1) / side for length in size)
        image = F.interpolate(image, scale_factor=scale, mode="bicubic")
    else:
        # timm's is antialiased, as is that of DINOv2 with registers.
        image = F.interpolate(image, size, mode="bicubic", antialias=rule != "esvit")
    assert image.shape[2:] == size
    return as_tokens(image)[0]


class PatchEmbed(nn.Module):
    """Cuts the image into patches; a partial patch at the end is dropped."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, stride=patch)


class Vit(nn.Module):
    """The whole network; `resize` says how positions are resized."""

    def __init__(self, config: dict, resize: str) -> None:
        super().__init__()
        self.resize = resize
        dim, count = config["embed_dim"], config.get("register_tokens", 0)
        patches = (config["img_size"] // config["patch_size"]) ** 2
        # Else every token but the registers has a position.
        patches_only = config.get("position_table") == "patches"
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.dist_token = None
        if config.get("distillation_token", False):
            self.dist_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.prefix = 1 if self.dist_token is None else 2
        self.placed_prefix = 0 if patches_only else self.prefix
        rows = self.placed_prefix + patches
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, dim))
        self.registers_name = "reg_token" if patches_only else "register_tokens"
        self.register_count = count
        if count:
            tokens = nn.Parameter(torch.zeros(1, count, dim))
            self.register_parameter(self.registers_name, tokens)
        self.patch_embed = PatchEmbed(config["patch_size"], dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config["depth"]))
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

    def embed(self, images: Tensor) -> Tensor:
        """All tokens with their positions."""
        maps = self.patch_embed.proj(images)
        size, placed = (maps.shape[2], maps.shape[3]), self.placed_prefix
        table = self.pos_embed[0]
        patches = as_tokens(maps) + resized(table[placed:], size, self.resize)
        tokens = [self.cls_token[0]]
        if self.dist_token is not None:
            tokens.append(self.dist_token[0])
        prefix = torch.cat(tokens)
        if placed:
            prefix = prefix + table[:placed]
        if self.register_count:
            prefix = torch.cat([prefix, getattr(self, self.registers_name)[0]])
        return torch.cat([prefix.expand(len(images), -1, -1), patches], 1)

    def view(self, tokens: Tensor) -> Tensor:
        """The class token, or the mean of it and the distillation token."""
        return tokens[:, : self.prefix].mean(1)

    def features(self, images: Tensor) -> Features:
        x = self.embed(images)
        views: list[Tensor] = []
        for block in self.blocks:
            x, attention = block(x)
            views.append(self.view(self.norm(x)))
        x = self.norm(x)
        first = self.prefix + self.register_count
        registers = x[:, self.prefix : first] if self.register_count else None
        return Features(views[-1], x[:, first:], views, attention, registers)
