"""Compares the networks of `peers` with the architectures that they stand for.

    check_peers.py [ARCH ...]

Numbers of parameters are those of the tests of `zoo.rs`, features those that the official code
gives for weights and an image that any language can remake (`reference/hashing.py`). Prints one
line a comparison; the exit status is 1 if one fails.
"""

import argparse
import sys

import torch
from peers import PEERS, build
from reference.hashing import fill, hashed_image
from torch import Tensor, nn

PARAMETERS = {
    "swin_tiny": 27_519_354,
    "vit_small16": 21_665_664,
    "cvt_tiny": 29_303_616,
    "vil_2262": 27_569_352,
    "pvt_small": 23_972_864,
    "resnet50": 23_508_032,
}

# By architecture and side of the image in pixels: the view feature from its first value on, its
# sum, region token 5 from its first value on, the norm of all region tokens. timm's Swin has its
# parameters in another order and another eps, its ViT other positions at 96 pixels.
FEATURES = {
    ("vit_small16", 224): "-.13154 -1.64207 .8187 .5101|-2.29255|-.08348 -2.95718 1.39881|276.54721",
    ("cvt_tiny", 224): "-.18498 -1.4744 -.14373 -.2648|1.06076|-.45269 -1.17099 .29608|193.78702",
    ("cvt_tiny", 96): "-1.11966 -1.51238 -.79342 -.59314|.40203|-2.05907 -1.77545 -.42876"
    "|82.97545",
    ("vil_2262", 224): "1.47249 -1.62647 -.7692 .8077|.68700|1.45208 -1.68569 -.96132|194.37276",
    ("vil_2262", 96): "1.35096 -1.49017 .06201 .61836|-.05631|1.1789 -1.59875 .07574|83.59159",
    ("pvt_small", 224): "2.09899 -1.35220 .54038 .19211|.63614|1.74236 -2.10681 .76484|160.70821",
    ("pvt_small", 96): "1.78613 -.99143 .83955 .00134|-.30896|1.23518 -1.93097 .97706|68.24362",
    ("resnet50", 224): ".05559 3.05509 .04395 .69249|2428.26831|0 2.67893 0|585.09283",
    ("resnet50", 96): ".20648 2.18786 .11559 .59669|1982.72461|.34512 2.48472 0|207.50728",
}
# These networks are deep and their weights are random. Sums and norms are of many values.
TOLERANCE, RELATIVE_TOLERANCE = 2e-3, 1e-4


def report(good: bool, what: str) -> bool:
    """Prints a comparison and whether it holds."""
    print(f"{'ok  ' if good else 'FAIL'} {what}", flush=True)
    return good


def numbers(view: Tensor, region: Tensor) -> list[float]:
    """What is compared of an image's features."""
    parts = view[:4], view.sum()[None], region[5, :3], region.norm()[None]
    return torch.cat(parts).tolist()


def share_of_tolerance(found: float, expected: float) -> float:
    return abs(found - expected) / max(TOLERANCE, RELATIVE_TOLERANCE * abs(expected))


def check_features(what: str, network: nn.Module, size: int, text: str) -> bool:
    """In evaluation, and as it is computed for gradients."""
    expected = [float(word) for word in text.replace("|", " ").split()]
    passed = True
    for mode, with_gradients in (("", False), (", for gradients", True)):
        with torch.set_grad_enabled(with_gradients):
            view, region = network(hashed_image(size))
        pairs = zip(numbers(view[0], region[0]), expected, strict=True)
        worst = max(share_of_tolerance(*pair) for pair in pairs)
        passed &= report(worst <= 1, f"{what}{mode}: {worst:.3f} of the tolerance")
    return passed


def check(arch: str) -> bool:
    """All forms of an architecture."""
    passed = True
    for form in PEERS[arch].forms:
        network = build(arch, form, 0.0).eval()
        count = sum(parameter.numel() for parameter in network.parameters())
        name = f"{arch}, {form}"
        passed &= report(count == PARAMETERS[arch], f"{name}: {count} parameters")
        fill(network)
        for (other, size), text in FEATURES.items():
            if other == arch:
                passed &= check_features(f"{name}, {size} px", network, size, text)
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arch", nargs="*", metavar="ARCH", help="all, if none is given")
    names = parser.parse_args().arch or list(PEERS)
    results = [check(name) for name in names]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
