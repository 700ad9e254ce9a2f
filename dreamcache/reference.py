"""Reference images: the subject alone on white, as sampling and training show it to the U-Net (paper Section 3.3)."""

from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from shards.sources import eight_bits

# How much of the side a subject fills, at least, in training; and, fixed, when sampling.
MIN_FILL = 0.7
SAMPLING_FILL = 0.85
JITTER_PROBABILITY = 0.1
JITTER = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05}
ERASE_PROBABILITY = 0.4
ERASE_AREA = (0.02, 0.25)
# From this value on in all channels a pixel counts as white ground.
WHITE = 250


def reference_image(image: Image.Image, mask: Image.Image | None = None, size: int = 512) -> Image.Image:
    """The subject on white, RGB, size x size: cut out, centred, its longer side 0.85 of the image's.

    The subject is where `mask` (L, 0 to 255, the image's size) says or, without one, the image's alpha channel. An
    image with neither is taken to be on white already: it is padded to a square and resized, its subject not moved.
    ValueError for a mask or alpha channel that is empty, a mask of another size, floating-point pixels, or a file that
    ends too early.
    """
    image, mask = _with_mask(image, mask)
    if mask is None:
        side = max(image.size)
        square = Image.new("RGB", (side, side), "white")
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square.resize((size, size), Image.Resampling.BICUBIC)
    cutout, alpha = _crop_to_subject(image, mask)
    return _place(cutout, alpha, size, SAMPLING_FILL, 0.5, 0.5)


def shown_alone(image: Image.Image) -> Literal["cut out", "on white"] | None:
    """How an image shows its subject alone: by its alpha channel, or three quarters of its edge are white; or not.

    ValueError for floating-point pixels, or a file that ends too early.
    """
    image, mask = _with_mask(image, None)
    if mask is not None:
        return "cut out"
    white = np.asarray(image).min(axis=2) >= WHITE
    edge = np.concatenate([white[0], white[-1], white[1:-1, 0], white[1:-1, -1]])
    return "on white" if edge.mean() >= 0.75 else None


def reference_mask(image: Image.Image, mask: Image.Image | None = None, size: int = 512) -> Image.Image:
    """Where `reference_image` puts the subject: L, size x size, 255 on it.

    Without mask and alpha channel the subject is all that is not white. ValueError as in `reference_image`.
    """
    image, mask = _with_mask(image, mask)
    if mask is None:
        ground = np.asarray(reference_image(image, size=size)).min(axis=2) >= WHITE
        return Image.fromarray(np.where(ground, 0, 255).astype(np.uint8))
    return ImageOps.invert(reference_image(Image.new("RGB", image.size, "black"), mask, size).convert("L"))


def augment_reference(image: Image.Image, mask: Image.Image, size: int, generator: np.random.Generator) -> Image.Image:
    """The subject on white, RGB, size x size, at a random size and place, perhaps flipped, jittered or partly erased.

    The longer side fills 0.7 to 1 of the image's; brightness, contrast and saturation change by up to 0.2 and hue by
    0.05 with p = 0.1; a white rectangle of 2 to 25% of the area covers a part with p = 0.4. The same generator state
    gives the same image. ValueError for an empty mask.
    """
    checked, checked_mask = _with_mask(image, mask)
    assert checked_mask is not None
    # Drawn always and in one order, so that no choice shifts the numbers of another.
    fill, left, top = generator.uniform(MIN_FILL, 1.0), generator.random(), generator.random()
    flip, jitter, erase = generator.random(3)
    jitters = {name: generator.uniform(-strength, strength) for name, strength in JITTER.items()}
    area, log_aspect = generator.uniform(*ERASE_AREA), generator.uniform(np.log(0.3), np.log(3.3))
    erase_left, erase_top = generator.random(2)

    cutout, alpha = _crop_to_subject(checked, checked_mask)
    if flip < 0.5:
        cutout, alpha = ImageOps.mirror(cutout), ImageOps.mirror(alpha)
    if jitter < JITTER_PROBABILITY:
        cutout = ImageEnhance.Brightness(cutout).enhance(1 + jitters["brightness"])
        cutout = ImageEnhance.Contrast(cutout).enhance(1 + jitters["contrast"])
        cutout = ImageEnhance.Color(cutout).enhance(1 + jitters["saturation"])
        cutout = _shift_hue(cutout, jitters["hue"])
    result = _place(cutout, alpha, size, fill, left, top)
    if erase < ERASE_PROBABILITY:
        width = min(size, round(size * float(np.sqrt(area * np.exp(log_aspect)))))
        height = min(size, round(size * float(np.sqrt(area / np.exp(log_aspect)))))
        x, y = round(erase_left * (size - width)), round(erase_top * (size - height))
        result.paste((255, 255, 255), (x, y, x + width, y + height))
    return result


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1.0


def _with_mask(image: Image.Image, mask: Image.Image | None) -> tuple[Image.Image, Image.Image | None]:
    """The image as RGB, and its mask as L, from whatever modes they come in."""
    try:
        image = ImageOps.exif_transpose(image)
        image.load()
        if mask is not None:
            mask.load()
    except (OSError, SyntaxError) as error:  # what Pillow raises for torn files depends on their format
        raise ValueError(f"the reference cannot be read ({error}): save the image again") from error
    if mask is None and (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info):
        mask = image.convert("RGBA").getchannel("A")
        if mask.getextrema() == (255, 255):
            mask = None
    image = eight_bits(image)
    image = image.convert("RGBA").convert("RGB") if "transparency" in image.info else image.convert("RGB")
    if mask is None:
        return image, None
    mask = eight_bits(mask).convert("L")
    if mask.size != image.size:
        raise ValueError(f"the mask is {mask.width} x {mask.height}, its image {image.width} x {image.height}")
    return image, mask


def _crop_to_subject(image: Image.Image, mask: Image.Image) -> tuple[Image.Image, Image.Image]:
    box = mask.point(lambda value: 255 * (value >= 128)).getbbox()
    if box is None:
        raise ValueError("the reference has no subject: its mask or alpha channel is empty")
    return image.crop(box), mask.crop(box)


def _place(cutout: Image.Image, alpha: Image.Image, size: int, fill: float, left: float, top: float) -> Image.Image:
    """The cut-out on white: `fill` of the side, at the shares `left` and `top` of the room that is left."""
    ratio = fill * size / max(cutout.size)
    width, height = max(1, round(cutout.width * ratio)), max(1, round(cutout.height * ratio))
    # White goes under the soft edge before resizing, so that no background shines through it.
    on_white = Image.composite(cutout, Image.new("RGB", cutout.size, "white"), alpha)
    result = Image.new("RGB", (size, size), "white")
    x, y = round(left * (size - width)), round(top * (size - height))
    result.paste(on_white.resize((width, height), Image.Resampling.BICUBIC), (x, y))
    return result


def _shift_hue(image: Image.Image, turns: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shift = round(turns * 255)
    return Image.merge("HSV", (hue.point(lambda h: (h + shift) % 256), saturation, value)).convert("RGB")
