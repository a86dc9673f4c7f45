"""From a picture in a file to numbers: decoding, the crops of the ImageNet protocol, normalization."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchddn.errors import InvalidInputError

try:
    import PIL.Image
except ImportError as error:
    raise ImportError(
        f"`torchddn.datasets` needs {error.name} (Pillow) for images. Install it with `pip install 'torchddn[data]'`."
    ) from error

__all__ = ["central_crop", "decode", "random_crop", "to_tensor"]

# Mean and deviation of the three colors over ImageNet, in [0, 1]: what published weights expect.
_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

_BILINEAR = PIL.Image.Resampling.BILINEAR
_NUM_TRIES = 10


def decode(path: Path) -> PIL.Image.Image:
    """Returns the picture in a file, in RGB.

    Raises:
        InvalidInputError: If the file is missing, empty, cut short or no picture; the message names it.
    """
    try:
        with PIL.Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        reason = "is empty" if path.is_file() and path.stat().st_size == 0 else f"cannot be decoded ({error})"
        raise InvalidInputError(f"{path} {reason}. Unpack the data set again, or remove the file.") from error


def central_crop(image: PIL.Image.Image, crop: int, resize: int) -> PIL.Image.Image:
    """Returns the central square of ``crop`` pixels, after the shorter side is scaled to ``resize``."""
    width, height = image.size
    scale = resize / min(width, height)
    width, height = max(crop, round(scale * width)), max(crop, round(scale * height))
    left, top = (width - crop) // 2, (height - crop) // 2
    return image.resize((width, height), _BILINEAR).crop((left, top, left + crop, top + crop))


def random_crop(image: PIL.Image.Image, crop: int, generator: np.random.Generator) -> PIL.Image.Image:
    """Returns a random part, 8 % to 100 % of the area and of aspect 3/4 to 4/3, scaled to ``crop``, flipped or not."""
    width, height = image.size
    for _ in range(_NUM_TRIES):
        area = width * height * generator.uniform(0.08, 1.0)
        aspect = math.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(generator.integers(width - w + 1)), int(generator.integers(height - h + 1))
            break
    else:
        # Very long pictures have no such part: the largest central one of an aspect allowed.
        w, h = min(width, max(1, height * 4 // 3)), min(height, max(1, width * 4 // 3))
        left, top = (width - w) // 2, (height - h) // 2
    part = image.resize((crop, crop), _BILINEAR, box=(left, top, left + w, top + h))
    return part.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else part


def to_tensor(image: PIL.Image.Image) -> Tensor:
    """Returns the picture as ``(3, height, width)`` float32, normalized by the mean and deviation of ImageNet."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255)
    return (pixels - _MEAN) / _DEVIATION
