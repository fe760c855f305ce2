"""Cases of backbones beside Swin: tiny networks of every family, seeded and perturbed.

Their parameters are so small in places that the eps of every norm shows.
"""

from collections.abc import Callable
from functools import partial

from torch import Generator

from reference.cases import Case
from reference.exact import complete
from reference.families import build
from reference.seeded import normal, perturb, shrink, state

# Images, height and width of an input.
Shape = tuple[int, int, int]


def family_case(
    seed: int,
    settings: dict,
    shapes: list[Shape],
    train: Shape,
    shrunk: tuple[tuple[str, ...], float],
) -> Case:
    """Features for inputs, and of a pass in training mode, with its gradients."""
    generator = Generator().manual_seed(seed)
    settings = {"kind": "backbone"} | settings | {"inputs": len(shapes), "train": True}
    network = build(settings).eval()
    perturb(network, generator)
    shrink(network, *shrunk)
    tensors = state(network, "param")
    tensors = {
        k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")
    }
    for i, (batch, height, width) in enumerate(shapes):
        tensors[f"input.{i}"] = normal(generator, batch, 3, height, width)
    batch, height, width = train
    images = normal(generator, batch, 3, height, width)
    tensors["train.input"] = images
    # Of their shapes.
    features = network.features(images)
    for name, value in {"cls": features.view, "region": features.region}.items():
        tensors[f"train.grad_out.{name}"] = normal(generator, *value.shape)
    return complete(Case(settings, tensors))


def vit() -> Case:
    """Positions of another map by EsViT's rule."""
    config = {"img_size": 6, "patch_size": 2, "embed_dim": 6, "depth": 2}
    config |= {"num_heads": 2, "mlp_ratio": 2.0}
    settings = {"family": "vit", "config": config, "n_last_blocks": 2}
    faint = (r"(cls_token|pos_embed|patch_embed.*|.*attn\.proj.*|.*mlp\.fc2.*)",)
    return family_case(71, settings, [(1, 6, 6), (2, 4, 5)], (1, 8, 8), (faint, 0.01))


def vit_registers() -> Case:
    """Registers, factors of branches, a table of patches alone, resized as by timm."""
    config = {"img_size": 6, "patch_size": 2, "embed_dim": 4, "depth": 1}
    config |= {"num_heads": 2, "mlp_ratio": 2.0, "register_tokens": 2}
    config |= {"layer_scale": True, "position_table": "patches"}
    settings = {"family": "vit", "config": config, "n_last_blocks": 1}
    settings |= {"patch_average": True, "position_resize": "timm"}
    faint = (r"(cls_token|reg_token|pos_embed|patch_embed.*|.*ls\d\.gamma)",)
    return family_case(72, settings, [(2, 4, 8)], (1, 6, 10), (faint, 0.03))


def cvt() -> Case:
    """Windows with padding; running statistics, and those of a batch."""
    config = {
        "embed_dims": [4, 6],
        "depths": [1, 1],
        "num_heads": [1, 2],
        "patch_sizes": [3, 3],
        "patch_strides": [2, 2],
        "patch_paddings": [1, 1],
        "window_sizes": [3, 3],
        "mlp_ratios": [2.0, 2.0],
    }
    settings = {"family": "cvt", "config": config, "n_last_blocks": 2}
    faint = (
        r"stage(0\.0\.proj.*|\d\.0\.proj\.bias)",
        r"stage\d\.0\.norm.*",
        r".*qkv\.(dw|bn\.running).*",
        r".*(proj_out|net\.2).*",
    )
    return family_case(73, settings, [(1, 12, 9)], (2, 8, 10), (faint, 0.02))


def vil() -> Case:
    """Windows on both axes, neighbors up to the border; a resized matrix of biases."""
    # Two blocks of the first stage, so that something comes of its global token.
    stages = ("l1,h1,d4,n2,s1,g1,p2", "l2,h2,d4,n1,s0,g1,p2", "l3,h2,d6,n1,s0,g0,p1")
    arch = "_".join(f"{stage},f2,a0" for stage in stages)
    config = {"arch": arch, "img_size": 12}
    settings = {"family": "vil", "config": config, "n_last_blocks": 4}
    faint = (
        r"layer(1\.0\.proj.*|\d\.0\.proj\.bias)",
        r".*(norm_embed|cls_token).*",
        r".*(attn\.proj|mlp\.fc2).*",
    )
    return family_case(
        81, settings, [(1, 12, 12), (1, 8, 13)], (1, 8, 14), (faint, 0.01)
    )


def pvt() -> Case:
    """A reduced map with a remainder, two eps, resized positions."""
    config = {
        "img_size": 12,
        "patch_size": 2,
        "embed_dims": [4, 6],
        "depths": [1, 1],
        "num_heads": [1, 2],
        "mlp_ratios": [2, 2],
        "sr_ratios": [2, 1],
    }
    settings = {"family": "pvt", "config": config, "n_last_blocks": 2}
    faint = (
        r"patch_embed(1\.proj.*|\d\.proj\.bias)",
        r"(patch_embed\d\.norm|pos_embed|cls_token).*",
        r".*(attn\.sr|attn\.proj|mlp\.fc2).*",
    )
    return family_case(75, settings, [(1, 12, 12)], (1, 8, 14), (faint, 0.01))


def resnet() -> Case:
    """Strides, both kinds of shortcut, running statistics and those of a batch."""
    config = {"stem_width": 4, "widths": [1, 2], "layers": [1, 1]}
    settings = {"family": "resnet", "config": config, "n_last_blocks": 1}
    faint = (r".*(conv\d|downsample\.0)\.weight", r".*running.*")
    return family_case(91, settings, [(1, 13, 14)], (2, 11, 14), (faint, 0.03))


def igpt() -> Case:
    """Squares of two pixels, a view feature from the middle, resized positions."""
    config = {
        "img_size": 6,
        "patch_size": 2,
        "colors": 5,
        "variant": "autoregressive",
        "embed_dim": 4,
        "depth": 2,
        "num_heads": 2,
        "feature_block": 1,
        "norm_eps": 1e-5,
    }
    settings = {"family": "igpt", "config": config, "n_last_blocks": 1}
    faint = (r"(wte|wpe|sos|.*c_proj).*",)
    return family_case(77, settings, [(2, 6, 6), (1, 4, 9)], (1, 6, 8), (faint, 0.01))


def family_cases() -> dict[str, Callable[[], Case]]:
    """Makers of the cases by folder name."""
    makers = {
        "cvt": cvt,
        "igpt": igpt,
        "pvt": pvt,
        "resnet": resnet,
        "vil": vil,
        "vit": vit,
        "vit-registers": vit_registers,
    }
    return {f"backbone-{name}": partial(make) for name, make in makers.items()}
