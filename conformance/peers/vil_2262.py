"""Vision longformer (Zhang et al., 2021) with 2-2-6-2 blocks as EsViT trains it.

In the first two stages a token sees the stage's global token, its own window of 7 x 7 tokens and
the eight windows around it, or in a student's training pass one of these, drawn anew in every
layer. In the others it sees all of its image. All attention has learned biases.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import DropPath, MapConv, Mlp, drop_path_rates, heads_of, joined_heads

NORM_EPS = 1e-6
WINDOW = 7
# Windows that are seen, as steps down and across.
STEPS = tuple((down, across) for down in (-1, 0, 1) for across in (-1, 0, 1))
OWN = STEPS.index((0, 0))


@dataclass(frozen=True)
class Shape:
    """Of a stage; `side` is that of its map at 224 pixels."""

    heads: int
    width: int
    blocks: int
    sparse: bool
    globals: int
    patch: int
    side: int


SHAPES = (
    Shape(heads=3, width=96, blocks=2, sparse=True, globals=1, patch=4, side=56),
    Shape(heads=6, width=192, blocks=2, sparse=True, globals=1, patch=2, side=28),
    Shape(heads=12, width=384, blocks=6, sparse=False, globals=1, patch=2, side=14),
    Shape(heads=24, width=768, blocks=2, sparse=False, globals=0, patch=2, side=7),
)

Size = tuple[int, int]


def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, fused: bool) -> Tensor:
    """Attention with a bias, which has a dimension for the batch.

    PyTorch's fused kernel has no gradient for the bias, and what its function falls back on
    computes products of bf16 in f32: unless `fused`, they are written out for a gradient.
    """
    if fused or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
    scale = queries.shape[-1] ** -0.5
    logits = (queries * scale) @ keys.transpose(-2, -1)
    return (logits + bias).softmax(-1) @ values


def relative_places(queries: Tensor, keys: Tensor, farthest: int) -> Tensor:
    """Rows of a table of `(2 farthest + 1)^2` relative positions, given places `[n, 2]`."""
    steps = queries[:, None] - keys[None] + farthest
    return steps[..., 0] * (2 * farthest + 1) + steps[..., 1]


def places(side: int) -> Tensor:
    """Row and column of every cell of a square, `[side * side, 2]`."""
    return torch.cartesian_prod(torch.arange(side), torch.arange(side))


class Biases(nn.Module):
    """Learned biases: a table of relative positions, and those of global tokens."""

    def __init__(self, heads: int, globals_: int, farthest: int) -> None:
        super().__init__()
        self.bias_table = random((2 * farthest + 1) ** 2, heads)
        self.globals = globals_
        if globals_:
            # Of global queries to tokens of the map, and the other way around.
            self.relative_position_bias_between = random(2, heads, globals_)
            self.relative_position_bias_among = random(heads, globals_, globals_)

    def at(self, index: Tensor) -> Tensor:
        """`[heads, queries, keys]` of rows `[queries, keys]` of the table."""
        return F.embedding(index, self.bias_table).permute(2, 0, 1)

    def of_locals(self, local: Tensor) -> Tensor:
        """Biases `[heads, queries, keys]` with those to global tokens before them."""
        if not self.globals:
            return local
        to_globals = self.relative_position_bias_between[1][:, None]
        return torch.cat([to_globals.expand(-1, local.shape[1], -1), local], -1)

    def of_globals(self, tokens: int) -> Tensor:
        """Those of global tokens to each other and to a map's: `[heads, globals, all tokens]`."""
        to_map = self.relative_position_bias_between[0][..., None]
        to_map = to_map.expand(-1, -1, tokens)
        return torch.cat([self.relative_position_bias_among, to_map], -1)


@functools.cache
def hidden_keys(size: Size, seen: tuple[int, ...]) -> Tensor:
    """Minus infinity for the keys of every window that lie beyond the map, else 0, the global
    token's first: `[windows, 1, 1, keys]`."""
    grid = [-(-side // WINDOW) for side in size]
    corners = torch.cartesian_prod(*(torch.arange(count) for count in grid))
    steps = torch.tensor([STEPS[number] for number in seen])
    windows = WINDOW * (corners[:, None] + steps)
    keys = (windows[:, :, None] + places(WINDOW)).flatten(1, 2)
    inside = ((keys >= 0) & (keys < torch.tensor(size))).all(-1)
    mask = torch.zeros(inside.shape).masked_fill(~inside, -torch.inf)
    return F.pad(mask, (1, 0))[:, None, None]


def in_windows(x: Tensor, size: Size, parts: int, heads: int) -> Tensor:
    """`[B, H * W, parts * C]` as `[parts, B, down, across, heads, window * window, C / heads]`."""
    maps = x.unflatten(1, size)
    down, right = (-side % WINDOW for side in size)
    if down or right:
        maps = F.pad(maps, (0, 0, 0, right, 0, down))
    grid = [-(-side // WINDOW) for side in size]
    maps = maps.unflatten(3, (parts, heads, -1))
    maps = maps.unflatten(2, (grid[1], WINDOW)).unflatten(1, (grid[0], WINDOW))
    return maps.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6)


def from_windows(x: Tensor, size: Size) -> Tensor:
    """`[B, down, across, heads, window * window, d]` as `[B, H * W, heads * d]`."""
    x = x.unflatten(4, (WINDOW, WINDOW)).permute(0, 1, 4, 2, 5, 3, 6)
    maps = x.flatten(5, 6).flatten(3, 4).flatten(1, 2)
    return maps[:, : size[0], : size[1]].flatten(1, 2)


class SparseAttention(nn.Module):
    """Attention to the global token and to windows; the global token's is to all."""

    def __init__(self, shape: Shape, fused: bool) -> None:
        super().__init__()
        self.shape, self.fused = shape, fused
        self.biases = Biases(shape.heads, shape.globals, 2 * WINDOW - 1)
        self.query = nn.Linear(shape.width, shape.width)
        self.kv = nn.Linear(shape.width, 2 * shape.width)
        self.proj = nn.Linear(shape.width, shape.width)
        own = places(WINDOW)
        index = [
            relative_places(own, own + WINDOW * torch.tensor(step), 2 * WINDOW - 1)
            for step in STEPS
        ]
        self.register_buffer("index", torch.stack(index, 1), persistent=False)

    def seen(self) -> tuple[int, ...]:
        """Numbers of the windows that are seen in this pass."""
        if not (self.training and torch.is_grad_enabled()):
            return tuple(range(len(STEPS)))
        others = [number for number in range(len(STEPS)) if number != OWN]
        return OWN, others[int(torch.randint(len(others), ()))]

    def forward(self, x: Tensor, size: Size) -> Tensor:
        queries, kv = self.query(x), self.kv(x)
        globals_ = self.shape.globals
        of_globals = self.of_globals(queries[:, :globals_], kv)
        of_locals = self.of_locals(queries[:, globals_:], kv, size)
        return self.proj(torch.cat([of_globals, of_locals], 1))

    def of_globals(self, queries: Tensor, kv: Tensor) -> Tensor:
        (queries,) = heads_of(queries, 1, self.shape.heads)
        keys, values = heads_of(kv, 2, self.shape.heads)
        bias = self.biases.of_globals(kv.shape[1] - self.shape.globals)[None]
        return joined_heads(attend(queries, keys, values, bias, self.fused))

    def of_locals(self, queries: Tensor, kv: Tensor, size: Size) -> Tensor:
        seen = self.seen()
        queries = in_windows(queries, size, 1, self.shape.heads)[0]
        b, down, across, heads, slots, width = queries.shape
        keys, values = self.keys_and_values(kv, size, seen)
        # The windows of an image count as heads, so that images share the bias.
        attended = attend(
            queries.flatten(1, 3), keys, values, self.bias_of(size, seen), self.fused
        )
        return from_windows(attended.view(b, down, across, heads, slots, width), size)

    def keys_and_values(
        self, kv: Tensor, size: Size, seen: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Those of every window, `[B, windows * heads, keys, d]`, the global token's first."""
        globals_, heads = self.shape.globals, self.shape.heads
        windows = in_windows(kv[:, globals_:], size, 2, heads)
        down, across = windows.shape[2:4]
        around = F.pad(windows, (0, 0, 0, 0, 0, 0, 1, 1, 1, 1))
        of_globals = torch.stack(heads_of(kv[:, :globals_], 2, heads))[:, :, None, None]
        parts = [of_globals.expand(-1, -1, down, across, -1, -1, -1)]
        for number in seen:
            row, column = (1 + step for step in STEPS[number])
            parts.append(around[:, :, row : row + down, column : column + across])
        keys, values = torch.cat(parts, -2).flatten(2, 4)
        return keys, values

    def bias_of(self, size: Size, seen: tuple[int, ...]) -> Tensor:
        """`[1, windows * heads, window * window, keys]`."""
        index = self.index[:, list(seen)].flatten(1)
        bias = self.biases.of_locals(self.biases.at(index))
        return (bias + hidden_keys(size, seen)).flatten(0, 1)[None]


class FullAttention(nn.Module):
    """Attention of all tokens to each other."""

    def __init__(self, shape: Shape, fused: bool) -> None:
        super().__init__()
        self.shape, self.fused = shape, fused
        self.biases = Biases(shape.heads, shape.globals, shape.side - 1)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.proj = nn.Linear(shape.width, shape.width)
        own = places(shape.side)
        index = relative_places(own, own, shape.side - 1)
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        queries, keys, values = heads_of(self.qkv(x), 3, self.shape.heads)
        bias = self.bias_of(size)[None]
        return self.proj(joined_heads(attend(queries, keys, values, bias, self.fused)))

    def bias_of(self, size: Size) -> Tensor:
        """`[heads, tokens, tokens]`; for other maps the matrix is resized as an image."""
        local, tokens = self.biases.at(self.index), size[0] * size[1]
        if size != (self.shape.side, self.shape.side):
            local = F.interpolate(local[None], (tokens, tokens), mode="bicubic")[0]
        if not self.shape.globals:
            return local
        of_globals = self.biases.of_globals(tokens)
        return torch.cat([of_globals, self.biases.of_locals(local)], 1)


class Block(nn.Module):
    """A pre-norm block of attention and MLP."""

    def __init__(self, shape: Shape, drop_path: float, fused: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=NORM_EPS)
        attention = SparseAttention if shape.sparse else FullAttention
        self.attn = attention(shape, fused)
        self.norm2 = nn.LayerNorm(shape.width, eps=NORM_EPS)
        self.mlp = Mlp(shape.width, 4 * shape.width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Embed(nn.Module):
    """Patches of a map as tokens, after the stage's global token."""

    def __init__(self, shape: Shape, inputs: int) -> None:
        super().__init__()
        self.globals = shape.globals
        if shape.globals:
            self.cls_token = random(1, shape.globals, shape.width)
        self.proj = MapConv(inputs, shape.width, shape.patch, stride=shape.patch)
        self.norm = nn.LayerNorm(shape.width, eps=NORM_EPS)

    def forward(self, maps: Tensor) -> tuple[Tensor, Size]:
        maps = self.proj(maps)
        size = (int(maps.shape[1]), int(maps.shape[2]))
        x = self.norm(maps.flatten(1, 2))
        if self.globals:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        return x, size


class Vil(nn.Module):
    """The whole network; the last stage has no global token."""

    out_dim = SHAPES[-1].width

    def __init__(self, drop_path: float, fused: bool) -> None:
        super().__init__()
        rates = iter(drop_path_rates(drop_path, sum(shape.blocks for shape in SHAPES)))
        self.stages = nn.ModuleList()
        inputs = 3
        for shape in SHAPES:
            blocks = [Block(shape, next(rates), fused) for _ in range(shape.blocks)]
            self.stages.append(nn.ModuleList([Embed(shape, inputs), *blocks]))
            inputs = shape.width
        self.norm = nn.LayerNorm(self.out_dim, eps=NORM_EPS)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = images.permute(0, 2, 3, 1)
        for shape, (embed, *blocks) in zip(SHAPES, self.stages):
            x, size = embed(maps)
            for block in blocks:
                x = block(x, size)
            maps = x[:, shape.globals :].unflatten(1, size)
        region = self.norm(maps.flatten(1, 2))
        return region.mean(1), region


def random(*shape: int) -> nn.Parameter:
    """Small random values."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=0.02))


def build(form: str, drop_path: float) -> nn.Module:
    """Attention in training as products and a softmax, or always by PyTorch's function."""
    return Vil(drop_path, form == "fused").to(memory_format=torch.channels_last)
