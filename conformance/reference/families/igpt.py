"""Image GPT: a transformer on the colors of an image, in raster order.

RMS norms instead of LayerNorms, no biases anywhere. The view feature comes from the
middle of the network.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .common import Features, as_tokens, join_heads, split_heads
from .vit import resized

MLP_RATIO = 4


class RmsNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight`."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer without bias."""
    return nn.Linear(inputs, outputs, bias=False)


class Attention(nn.Module):
    """Attention to all tokens or, if it is causal, to a token and those before it."""

    def __init__(self, dim: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.c_attn = linear(dim, 3 * dim)
        self.c_proj = linear(dim, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (
            split_heads(part, self.heads) for part in self.c_attn(x).chunk(3, -1)
        )
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if self.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        attention = scores.softmax(-1)
        return self.c_proj(join_heads(attention @ v)), attention


class Mlp(nn.Module):
    """Two linear layers with `x * sigmoid(1.702 x)` between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.c_fc = linear(dim, MLP_RATIO * dim)
        self.c_proj = linear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        return self.c_proj(x * (1.702 * x).sigmoid())


class Block(nn.Module):
    """Attention and MLP, both behind a norm and beside a skip connection."""

    def __init__(self, dim: int, heads: int, causal: bool, eps: float) -> None:
        super().__init__()
        self.ln_1 = RmsNorm(dim, eps)
        self.attn = Attention(dim, heads, causal)
        self.ln_2 = RmsNorm(dim, eps)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        attended, attention = self.attn(self.ln_1(x))
        x = x + attended
        return x + self.mlp(self.ln_2(x)), attention


class Table(nn.Module):
    """Rows by number."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, dim))


class Igpt(nn.Module):
    """The network as a backbone; the view feature follows `feature_block` blocks."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        dim, eps = config["embed_dim"], config["norm_eps"]
        self.patch, self.feature_block = config["patch_size"], config["feature_block"]
        causal = config["variant"] == "autoregressive"
        self.palette = nn.Parameter(torch.zeros(config["colors"], 3), False)
        self.wte = Table(config["colors"], dim)
        self.wpe = Table((config["img_size"] // self.patch) ** 2, dim)
        self.sos = nn.Parameter(torch.zeros(dim)) if causal else None
        sizes = (dim, config["num_heads"], causal, eps)
        self.h = nn.ModuleList(Block(*sizes) for _ in range(config["depth"]))
        self.ln_f = RmsNorm(dim, eps)

    def distances(self, images: Tensor) -> Tensor:
        """Squared distances of the mean color of every square to the palette's."""
        colors = as_tokens(F.avg_pool2d(images, self.patch))
        return (colors[:, :, None] - self.palette).square().sum(-1)

    def features(self, images: Tensor) -> Features:
        size = (images.shape[2] // self.patch, images.shape[3] // self.patch)
        x = self.wte.weight[self.distances(images).argmin(-1)]
        if self.sos is not None:
            # Where the next color is predicted, a position stands for those before it.
            start = self.sos.expand(len(x), 1, -1)
            x = torch.cat([start, x[:, :-1]], 1)
        x = x + resized(self.wpe.weight, size, "timm")
        probes: list[Tensor] = []
        norms = [*(block.ln_1 for block in self.h), self.ln_f]
        for block, norm in zip(self.h, norms[1:]):
            x, attention = block(x)
            probes.append(norm(x).mean(1))
        probes = probes[: self.feature_block]
        return Features(probes[-1], self.ln_f(x), probes, attention)
