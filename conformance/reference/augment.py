"""The image operations, as Pillow and torchvision compute them."""

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF


def apply(image: np.ndarray, operation: dict) -> np.ndarray:
    """Applies one named operation of an `augment` case to an RGB byte image."""
    settings = {k: v for k, v in operation.items() if k not in ("op", "input")}
    result = OPERATIONS[operation["op"]](Image.fromarray(image), **settings)
    return np.asarray(result.convert("RGB"))


def resized_crop(
    image: Image.Image,
    top: int,
    left: int,
    height: int,
    width: int,
    size: int,
    interpolation: str,
    antialias: bool,
) -> Image.Image:
    """Cuts at whole pixels, then resizes to a square."""
    mode = InterpolationMode(interpolation)
    box = (top, left, height, width)
    return TF.resized_crop(image, *box, [size, size], mode, antialias)


def eval_transform(
    image: Image.Image, resize_shorter: int, center_crop: int, interpolation: str
) -> Image.Image:
    """Resizes the shorter side, then cuts the middle."""
    mode = InterpolationMode(interpolation)
    return TF.center_crop(TF.resize(image, resize_shorter, mode), center_crop)


OPERATIONS = {
    "resized_crop": resized_crop,
    "eval_transform": eval_transform,
    "horizontal_flip": TF.hflip,
    "brightness": lambda image, factor: TF.adjust_brightness(image, factor),
    "contrast": lambda image, factor: TF.adjust_contrast(image, factor),
    "saturation": lambda image, factor: TF.adjust_saturation(image, factor),
    "hue": lambda image, factor: TF.adjust_hue(image, factor),
    "grayscale": lambda image: TF.rgb_to_grayscale(image, 3),
    "gaussian_blur": lambda image, radius: image.filter(
        ImageFilter.GaussianBlur(radius)
    ),
    "solarize": lambda image, threshold: ImageOps.solarize(image, threshold),
}
