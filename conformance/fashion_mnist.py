"""Fashion-MNIST as folders of images, one a class, for `esvit pretrain` and `esvit eval`.

    python fashion_mnist.py OUT [--source FOLDER] [--train N] [--val N]

Reads the four files of the set, which Debian's package `dataset-fashion-mnist` installs, and writes
OUT/train/<class>/<number>.png and OUT/val/<class>/<number>.png, as many of each class as are asked
for, in the order of the set.
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


def write(source, prefix, out, per_class):
    images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
    for name in CLASSES:
        (out / name).mkdir(parents=True, exist_ok=True)
    counts = Counter()
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        if counts[label] < per_class:
            counts[label] += 1
            Image.fromarray(image).save(out / CLASSES[label] / f"{number:05}.png")
    print(f"{sum(counts.values())} images in {out}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--train", type=int, default=6000, help="images a class to learn from")
    parser.add_argument("--val", type=int, default=1000, help="images a class to classify")
    arguments = parser.parse_args()
    write(arguments.source, "train", arguments.out / "train", arguments.train)
    write(arguments.source, "t10k", arguments.out / "val", arguments.val)


if __name__ == "__main__":
    main()
