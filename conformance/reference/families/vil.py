"""Vision longformers as EsViT uses them: windows and their neighbors, then all tokens.

Sparse attention is written as full attention with a mask: a token sees the global
tokens and every token whose window is its own or one of the eight around it. That is
mode 0 without wrapping, whatever the padding of windows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .common import Features, Mlp, as_map, as_tokens, join_heads, split_heads

LAYER_NORM_EPS = 1e-6
MLP_RATIO = 4


def read_arch(arch: str) -> list[dict[str, int]]:
    """The stages of the official string, one letter and one number an attribute."""
    defaults = {
        "h": 3,
        "d": 192,
        "n": 1,
        "s": 1,
        "g": 1,
        "p": 2,
        "f": 7,
        "a": 1,
        "r": 0,
    }
    stages = []
    for text in arch.split("_"):
        stages.append(defaults | {part[0]: int(part[1:]) for part in text.split(",")})
        if stages[-1]["a"] or stages[-1]["r"]:
            raise NotImplementedError("absolute positions and pooled windows")
        # After full attention there is no sparse one.
        stages[-1]["s"] = min(stage["s"] for stage in stages)
    return stages


def places(size: tuple[int, int]) -> Tensor:
    """Row and column of every token of a map, `[H * W, 2]`."""
    return torch.cartesian_prod(*(torch.arange(length) for length in size))


class Biases(nn.Module):
    """Learned biases of attention, by relative position and of global tokens."""

    def __init__(self, stage: dict[str, int], reach: int) -> None:
        super().__init__()
        heads, count = stage["h"], stage["g"]
        self.reach, self.globals = reach, count
        table = torch.zeros((2 * reach + 1) ** 2, heads)
        self.local_relative_position_bias_table = nn.Parameter(table)
        if count:
            # Of global queries to the map's keys, and the other way around.
            between = torch.zeros(2, heads, count)
            self.g2l_relative_position_bias = nn.Parameter(between)
            among = torch.zeros(heads, count, count)
            self.g2g_relative_position_bias = nn.Parameter(among)

    def of_map(self, size: tuple[int, int]) -> Tensor:
        """`[heads, n, n]` of a map; 0 for tokens beyond the table's reach."""
        at = places(size)
        steps = at[:, None] - at[None] + self.reach
        side = 2 * self.reach + 1
        inside = ((steps >= 0) & (steps < side)).all(-1)
        index = (steps[..., 0] * side + steps[..., 1]) * inside
        bias = self.local_relative_position_bias_table[index] * inside[..., None]
        return bias.permute(2, 0, 1)

    def with_globals(self, local: Tensor) -> Tensor:
        """Biases of all tokens, the global ones first, given those of the map."""
        if not self.globals:
            return local
        n = local.shape[-1]
        to_map, from_map = self.g2l_relative_position_bias
        upper = [self.g2g_relative_position_bias, to_map[..., None].expand(-1, -1, n)]
        lower = [from_map[:, None].expand(-1, n, -1), local]
        return torch.cat([torch.cat(upper, 2), torch.cat(lower, 2)], 1)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, heads: int) -> Tensor:
    """Attention with a bias `[heads, n, n]`."""
    q, k, v = (split_heads(x, heads) for x in (q, k, v))
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias
    return join_heads(scores.softmax(-1) @ v)


class SparseAttention(Biases):
    """Attention to global tokens, a token's own window and those around it."""

    def __init__(self, stage: dict[str, int]) -> None:
        super().__init__(stage, 2 * stage["f"] - 1)
        dim = stage["d"]
        self.heads, self.window = stage["h"], stage["f"]
        self.query = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        window = places(size) // self.window
        hidden = ((window[:, None] - window[None]).abs() > 1).any(-1)
        local = self.of_map(size).masked_fill(hidden, -torch.inf)
        q, (k, v) = self.query(x), self.kv(x).chunk(2, -1)
        return self.proj(attend(q, k, v, self.with_globals(local), self.heads))


class FullAttention(Biases):
    """Attention of all tokens to each other; the table is of a map of `side * side`."""

    def __init__(self, stage: dict[str, int], side: int) -> None:
        super().__init__(stage, side - 1)
        dim = stage["d"]
        self.heads, self.side = stage["h"], side
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        local = self.of_map((self.side, self.side))
        if size != (self.side, self.side):
            # The matrix of all pairs is resized as an image is.
            n = size[0] * size[1]
            local = F.interpolate(local[None], (n, n), mode="bicubic")[0]
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj(attend(q, k, v, self.with_globals(local), self.heads))


class AttentionBranch(nn.Module):
    """Attention behind a norm and beside a skip connection."""

    def __init__(self, dim: int, attn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = attn

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return x + self.attn(self.norm(x), size)


class MlpBranch(nn.Module):
    """The same of an MLP."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, MLP_RATIO * dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return x + self.mlp(self.norm(x))


class Embed(nn.Module):
    """The tokens of a stage, behind fresh global ones."""

    def __init__(self, inputs: int, stage: dict[str, int]) -> None:
        super().__init__()
        dim, patch = stage["d"], stage["p"]
        self.globals = stage["g"]
        if self.globals:
            self.cls_token = nn.Parameter(torch.zeros(1, self.globals, dim))
        self.proj = nn.Conv2d(inputs, dim, patch, stride=patch)
        self.norm_embed = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)

    def forward(self, maps: Tensor) -> tuple[Tensor, tuple[int, int]]:
        maps = self.proj(maps)
        x = self.norm_embed(as_tokens(maps))
        if self.globals:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        return x, (maps.shape[2], maps.shape[3])


class Vil(nn.Module):
    """The whole network; `layerN` has embedding, attention and MLP branches in turn."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.stages = read_arch(config["arch"])
        inputs, side = 3, config["img_size"]
        for number, stage in enumerate(self.stages, 1):
            dim = stage["d"]
            side //= stage["p"]
            parts: list[nn.Module] = [Embed(inputs, stage)]
            for _ in range(stage["n"]):
                sparse = stage["s"] == 1
                attn = SparseAttention(stage) if sparse else FullAttention(stage, side)
                parts += [AttentionBranch(dim, attn), MlpBranch(dim)]
            self.register_module(f"layer{number}", nn.ModuleList(parts))
            inputs = dim
        self.norm = nn.LayerNorm(inputs, eps=LAYER_NORM_EPS)

    def features(self, images: Tensor) -> Features:
        maps = images
        probes: list[Tensor] = []
        for number, stage in enumerate(self.stages, 1):
            embed, *branches = getattr(self, f"layer{number}")
            x, size = embed(maps)
            for attention, mlp in zip(branches[::2], branches[1::2]):
                x = mlp(attention(x, size), size)
                normed = self.norm(x) if number == len(self.stages) else x
                # A global token stands for the image, where there is one.
                probes.append(normed[:, 0] if stage["g"] else normed.mean(1))
            maps = as_map(x[:, stage["g"] :], size)
        region = self.norm(as_tokens(maps))
        return Features(region.mean(1), region, probes)
