"""PVT, version 1: attention to a reduced map, and a class token in the last stage."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .common import Features, Mlp, as_map, as_tokens, join_heads, split_heads

# Norms after embeddings and of reduced maps keep PyTorch's own eps, 1e-5.
LAYER_NORM_EPS = 1e-6


class Attention(nn.Module):
    """Attention to the tokens of a map of which `ratio * ratio` tokens are one."""

    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.sr = None
        if ratio > 1:
            self.sr = nn.Conv2d(dim, dim, ratio, stride=ratio)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        q = split_heads(self.q(x), self.heads)
        if self.sr is not None:
            x = self.norm(as_tokens(self.sr(as_map(x, size))))
        k, v = (split_heads(part, self.heads) for part in self.kv(x).chunk(2, -1))
        attention = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        return self.proj(join_heads(attention @ v)), attention


class Block(nn.Module):
    """Attention and MLP, both behind a norm and beside a skip connection."""

    def __init__(self, dim: int, heads: int, ratio: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, heads, ratio)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        attended, attention = self.attn(self.norm1(x), size)
        x = x + attended
        return x + self.mlp(self.norm2(x)), attention


class PatchEmbed(nn.Module):
    """Joins the tokens of a square; what is left at the end is dropped."""

    def __init__(self, inputs: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, dim, patch, stride=patch)
        self.norm = nn.LayerNorm(dim)


def resized(table: Tensor, size: tuple[int, int]) -> Tensor:
    """A square table `[n, C]` of positions for a map of another size."""
    side = int(len(table) ** 0.5)
    image = table.T.unflatten(1, (side, side))[None]
    return as_tokens(F.interpolate(image, size, mode="bilinear"))[0]


class Pvt(nn.Module):
    """The whole network."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        widths = [3, *config["embed_dims"]]
        self.stages = len(config["depths"])
        side = config["img_size"] // config["patch_size"]
        for i in range(self.stages):
            dim = widths[i + 1]
            # In the last stage the class token has a position, too.
            rows = (side >> i) ** 2 + (i + 1 == self.stages)
            table = nn.Parameter(torch.zeros(1, rows, dim))
            self.register_parameter(f"pos_embed{i + 1}", table)
            patch = config["patch_size"] if i == 0 else 2
            embed = PatchEmbed(widths[i], dim, patch)
            self.register_module(f"patch_embed{i + 1}", embed)
            sizes = [config[k][i] for k in ("num_heads", "sr_ratios", "mlp_ratios")]
            blocks = (Block(dim, *sizes) for _ in range(config["depths"][i]))
            self.register_module(f"block{i + 1}", nn.ModuleList(blocks))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, widths[-1]))
        self.norm = nn.LayerNorm(widths[-1], eps=LAYER_NORM_EPS)

    def stage(self, number: int) -> tuple[Tensor, PatchEmbed, nn.ModuleList]:
        """Positions `[n, C]`, embedding and blocks of a stage, counted from 1."""
        parts = ("pos_embed", "patch_embed", "block")
        table, embed, blocks = (getattr(self, f"{part}{number}") for part in parts)
        return table[0], embed, blocks

    def features(self, images: Tensor) -> Features:
        maps = images
        probes: list[Tensor] = []
        for number in range(1, self.stages + 1):
            table, embed, blocks = self.stage(number)
            maps = embed.proj(maps)
            size, last = (maps.shape[2], maps.shape[3]), number == self.stages
            x = embed.norm(as_tokens(maps)) + resized(table[int(last) :], size)
            if last:
                token = self.cls_token[0] + table[:1]
                x = torch.cat([token.expand(len(x), -1, -1), x], 1)
            for block in blocks:
                x, attention = block(x, size)
                probes.append(self.norm(x)[:, 0] if last else x.mean(1))
            if not last:
                maps = as_map(x, size)
        x = self.norm(x)
        return Features(x[:, 0], x[:, 1:], probes, attention)
