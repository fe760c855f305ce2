"""Fashion-MNIST as folders of images, one a class, for `esvit pretrain` and `esvit eval`.

    python fashion_mnist.py OUT [--source FOLDER] [--train N] [--val N]
    python fashion_mnist.py OUT --train 1000,1000,0,0,0,0,0,0,0,0

Reads the four files of the set, which Debian's package `dataset-fashion-mnist` installs, and writes
OUT/train/<class>/<number>.png and OUT/val/<class>/<number>.png, as many of each class as are asked
for, in the order of the set. A class of which there is none has no folder.
"""

import argparse
import gzip
import struct
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = [
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
]


def read_idx(path):
    """The array in a file of the IDX format."""
    with gzip.open(path) as file:
        _, kind, dimensions = struct.unpack(">HBB", file.read(4))
        assert kind == 8, f"{path} does not hold bytes"
        shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
        return np.frombuffer(file.read(), np.uint8).reshape(shape)


def numbers(text):
    """Images of each class, from a number for all of them or from one for each."""
    given = [int(number) for number in text.split(",")]
    if len(given) not in (1, len(CLASSES)):
        raise argparse.ArgumentTypeError(f"one number or {len(CLASSES)}, not {len(given)}")
    return given * (len(CLASSES) // len(given))


def write(source, prefix, out, per_class):
    images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
    for name, wanted in zip(CLASSES, per_class, strict=True):
        if wanted > 0:
            (out / name).mkdir(parents=True, exist_ok=True)
    counts = Counter()
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        if counts[label] < per_class[label]:
            counts[label] += 1
            Image.fromarray(image).save(out / CLASSES[label] / f"{number:05}.png")
    print(f"{sum(counts.values())} images in {out}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--train", type=numbers, default="6000", help="images to learn from, of each class or class by class")
    parser.add_argument("--val", type=numbers, default="1000", help="images to classify, of each class or class by class")
    arguments = parser.parse_args()
    write(arguments.source, "train", arguments.out / "train", arguments.train)
    write(arguments.source, "t10k", arguments.out / "val", arguments.val)


if __name__ == "__main__":
    main()
