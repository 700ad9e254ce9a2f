"""Small triplet shards for training tests: coloured discs on noisy grounds."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from shards.triplets import Triplet, write_triplets

COLOURS = ("red", "green", "blue", "yellow")


def tiny_triplet(number: int, size: int = 64) -> Triplet:
    generator = np.random.default_rng(number)
    colour = COLOURS[number % len(COLOURS)]
    image = Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8))
    mask = Image.new("L", (size, size), 0)
    left, top = generator.integers(0, size // 2, 2)
    box = (left, top, left + size // 2 - 1, top + size // 2 - 1)
    ImageDraw.Draw(image).ellipse(box, fill=colour)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    jpg, png = io.BytesIO(), io.BytesIO()
    image.save(jpg, "JPEG", quality=95)
    mask.save(png, "PNG")
    key = f"{number:05d}"
    noun = ("disc", "ball")[number % 2]
    record = {"key": key, "caption": f"a {colour} disc", "subject": noun, "class": noun, "seed": number}
    return Triplet(key, jpg.getvalue(), png.getvalue(), record)


def write_tiny_triplets(run: Path, shards: int = 2, triplets_a_shard: int = 10) -> list[Path]:
    """Write finished shards below a run folder and return their paths."""
    return [
        write_triplets(
            run, shard, [tiny_triplet(shard * triplets_a_shard + n) for n in range(triplets_a_shard)], "tests"
        )
        for shard in range(shards)
    ]
