"""Photographs of surfaces as folders of images, one a texture, for `esvit pretrain` and `esvit eval`.

    python surfaces.py OUT [--source FILE] [--images 40 500 2000 20000]

Reads the textures of Debian's package `nexuiz-textures`, and cuts squares of 96 pixels from up to 286 of
them that differ in color: for N images OUT/N/<texture>/<number>.jpg from their left 70 %, to learn from, and
OUT/val-N/<texture>/<number>.jpg from what is right of that.
"""

import argparse
import io
import random
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 96
#: Textures, and squares of each to learn from, by the number of all.
SETS = {40: (10, 4), 500: (100, 5), 2000: (200, 10), 20000: (286, 70)}
#: Parts of names of what is no picture of a surface.
OTHERS = (
    "_norm", "_gloss", "_glow", "_bump", "_pants", "_shirt", "decal", "sky", "light", "lite", "beam", "env/",
)
#: Textures of less contrast, or whose thumbnails differ less from those of one before, are left out.
CONTRAST, DIFFERENCE = 18, 14


def textures(path):
    """Textures of 512 pixels width, in an order of their own."""
    archive = zipfile.ZipFile(path)
    is_picture = lambda name: name.lower().endswith((".jpg", ".tga", ".png")) and not any(
        part in name for part in OTHERS
    )
    names = sorted(filter(is_picture, archive.namelist()))
    random.Random(1).shuffle(names)
    found, thumbnails = [], []
    for name in names:
        try:
            image = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
        except OSError:
            continue
        if min(image.size) < 256:
            continue
        if image.width != 512:
            image = image.resize((512, 512 * image.height // image.width))
        thumbnail = np.asarray(image.resize((16, 16)), float).ravel()
        is_new = all(np.abs(thumbnail - other).mean() >= DIFFERENCE for other in thumbnails)
        if image.height >= 256 and np.asarray(image, float).std() >= CONTRAST and is_new:
            thumbnails.append(thumbnail)
            found.append(image)
    return found


def write(found, count, out):
    classes, each = SETS[count]
    places = random.Random(count)
    for number, image in enumerate(found[:classes]):
        border = int(image.width * 0.7)
        held_out = max(2, min(10, 2000 // classes))
        for name, left, right, squares in [
            (str(count), 0, border, each), (f"val-{count}", border, image.width, held_out),
        ]:
            folder = out / name / f"{number:03}"
            folder.mkdir(parents=True, exist_ok=True)
            for square in range(squares):
                x = places.randrange(left, right - SIDE + 1)
                y = places.randrange(0, image.height - SIDE + 1)
                image.crop((x, y, x + SIDE, y + SIDE)).save(folder / f"{square:02}.jpg")
    used = min(classes, len(found))
    print(f"{used * each} images of {used} textures in {out / str(count)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--source", type=Path, default=Path("/usr/share/games/nexuiz/data/textures.pk3")
    )
    parser.add_argument("--images", type=int, nargs="+", choices=SETS, default=list(SETS))
    arguments = parser.parse_args()
    found = textures(arguments.source)
    for count in arguments.images:
        write(found, count, arguments.out)


if __name__ == "__main__":
    main()
