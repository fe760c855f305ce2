"""CvT as EsViT trains it: attention in windows, after a depthwise convolution."""

import torch.nn.functional as F
from torch import Tensor, nn

from .common import Features, as_tokens, join_heads, split_heads

LAYER_NORM_EPS = 1e-5


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of maps `[B, C, H, W]`."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=LAYER_NORM_EPS)

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.movedim(1, -1)).movedim(-1, 1)


class Projection(nn.Module):
    """Queries, keys and values: depthwise convolution, BatchNorm, 1 x 1 convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.bn = nn.BatchNorm2d(dim)
        self.pw = nn.Conv2d(dim, 3 * dim, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return self.pw(self.bn(self.dw(maps)))


class Attention(nn.Module):
    """Attention in windows that do not overlap."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = Projection(dim)
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, maps: Tensor) -> Tensor:
        _, dim, height, width = maps.shape
        window = min(self.window, height, width)
        # Zeros come before the convolution and take part in attention.
        maps = F.pad(maps, (0, -width % window, 0, -height % window))
        grid = (maps.shape[2] // window, maps.shape[3] // window)
        qkv = self.qkv(maps).unflatten(3, (grid[1], window))
        qkv = qkv.unflatten(2, (grid[0], window))
        # [B, 3 C, down, y, across, x] to [B * windows, tokens, 3 C].
        tokens = qkv.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(0, 2)
        q, k, v = (split_heads(part, self.heads) for part in tokens.chunk(3, -1))
        # By the width of all heads, not of one.
        attention = (q @ k.transpose(-2, -1) * dim**-0.5).softmax(-1)
        out = join_heads(attention @ v)
        out = out.unflatten(1, (window, window)).unflatten(0, (-1, *grid))
        maps = out.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return self.proj_out(maps[:, :, :height, :width])


class QuickGelu(nn.Module):
    """`x * sigmoid(1.702 x)`."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.702 * x).sigmoid()


class FeedForward(nn.Module):
    """Two 1 x 1 convolutions."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(dim, hidden, 1), QuickGelu(), nn.Conv2d(hidden, dim, 1)]
        self.net = nn.Sequential(*layers)

    def forward(self, maps: Tensor) -> Tensor:
        return self.net(maps)


class Branch(nn.Module):
    """A skip connection around a norm and what follows it."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim)
        self.fn = fn

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.fn(self.norm(maps))


class Embed(nn.Module):
    """A convolution that makes the tokens of a stage, and a norm."""

    def __init__(self, inputs: int, dim: int, size: int, stride: int, pad: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, dim, size, stride, pad)
        self.norm = ChannelNorm(dim)

    def forward(self, maps: Tensor) -> Tensor:
        return self.norm(self.proj(maps))


class Blocks(nn.Module):
    """The blocks of a stage: an attention branch and an MLP branch each."""

    def __init__(self, config: dict, stage: int) -> None:
        super().__init__()
        dim = config["embed_dims"][stage]
        hidden = int(dim * config["mlp_ratios"][stage])
        heads, window = config["num_heads"][stage], config["window_sizes"][stage]

        def block() -> nn.ModuleList:
            attention = Branch(dim, Attention(dim, heads, window))
            return nn.ModuleList([attention, Branch(dim, FeedForward(dim, hidden))])

        self.layers = nn.ModuleList(block() for _ in range(config["depths"][stage]))


class Cvt(nn.Module):
    """The whole network."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        if config.get("res_stem", False):
            raise NotImplementedError("a stem of three convolutions")
        widths = [3, *config["embed_dims"]]
        self.stages = len(config["depths"])
        for i in range(self.stages):
            names = ("patch_sizes", "patch_strides", "patch_paddings")
            embed = Embed(
                widths[i], widths[i + 1], *(config[name][i] for name in names)
            )
            stage = nn.ModuleList([embed, Blocks(config, i)])
            self.register_module(f"stage{i}", stage)
        self.norm = nn.LayerNorm(widths[-1], eps=LAYER_NORM_EPS)

    def features(self, images: Tensor) -> Features:
        x = images
        means: list[Tensor] = []
        for i in range(self.stages):
            embed, blocks = getattr(self, f"stage{i}")
            x = embed(x)
            for attention, mlp in blocks.layers:
                x = mlp(attention(x))
                tokens = as_tokens(x)
                if i + 1 == self.stages:
                    tokens = self.norm(tokens)
                means.append(tokens.mean(1))
        return Features(means[-1], tokens, means)
