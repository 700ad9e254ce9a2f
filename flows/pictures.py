"""Pictures as data URIs, small enough for a report or an artifact that holds dozens of them."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps


def data_uri(image: Image.Image, side: int = 192) -> str:
    """An image as `data:image/jpeg;base64,...`, fitted into side x side pixels and never enlarged."""
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def from_data_uri(text: str) -> Image.Image:
    """The image that `data_uri` wrote."""
    return Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2])))


def with_mask(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The image with all but the masked subject (L, 255 on the subject) faded, as reports show a mask."""
    grey = ImageOps.grayscale(image).convert("RGB")
    faded = Image.blend(grey, Image.new("RGB", image.size, "white"), 0.65)
    return Image.composite(image.convert("RGB"), faded, mask.convert("L").resize(image.size))


def contact_sheet(images: Sequence[Image.Image], columns: int, side: int) -> Image.Image:
    """Images in rows of `columns`, each fitted into a square of `side` pixels, on white."""
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (side + 4) - 4, rows * (side + 4) - 4), "white")
    for number, image in enumerate(images):
        cell = ImageOps.contain(image.convert("RGB"), (side, side))
        sheet.paste(cell, (number % columns * (side + 4), number // columns * (side + 4)))
    return sheet


def written(text: str, side: int) -> Image.Image:
    """Text as a picture of side x side pixels."""
    lines = [part for line in text.split("\n") for part in textwrap.wrap(line, side // 7) or [""]]
    picture = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(picture).text((6, 6), "\n".join(lines), fill="black", font=ImageFont.load_default(12))
    return picture
