"""A dataset as text and as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from flows.pictures import contact_sheet, with_mask, written
from shards.triplets import TripletShards

SIDE = 192
CLASSES_LISTED = 20
BAR = 40


def statistics_lines(statistics: Mapping[str, Any]) -> Iterator[str]:
    """Statistics, as `triplet_statistics` gives them with the stages' accounts beside, as lines for a terminal."""
    yield f"{statistics['triplets']} triplets in {statistics['shards']} shards, {statistics['bytes'] / 1e6:.1f} MB"
    yield from (f"  {line}" for line in accounts_lines(statistics["stages"]))
    yield from _bars("classes", dict(list(statistics["classes"].items())[:CLASSES_LISTED]))
    if len(statistics["classes"]) > CLASSES_LISTED:
        yield f"  ... {len(statistics['classes']) - CLASSES_LISTED} classes more"
    yield from _bars("words of a caption", statistics["caption_words"]["histogram"])
    yield from _bars("mask, share of the image", statistics["mask_area"]["histogram"])


def accounts_lines(stages: Mapping[str, Any]) -> Iterator[str]:
    """What entered each stage, left it and was rejected there, by `stage_accounts`, a line a stage."""
    for stage, row in stages.items():
        reasons = ", ".join(f"{reason} {count}" for reason, count in row["rejected"].items())
        yield f"{stage}: {row['in']} in, {row['out']} out" + (f"; rejected: {reasons}" if reasons else "")


def _bars(title: str, counts: Mapping[str, int]) -> Iterator[str]:
    yield title
    most, width = max(counts.values(), default=1) or 1, max(map(len, counts), default=0)
    for name, count in counts.items():
        if count:
            yield f"  {name:<{width}} {count:>8} {'#' * max(1, round(BAR * count / most))}"


def triplets_sheet(paths: Sequence[Path], count: int) -> Image.Image:
    """Target, mask, reference and caption of up to `count` triplets spread evenly over the shards, a row each; RGB.

    Raises ValueError where there is no triplet at all.
    """
    from dreamcache.reference import reference_image

    cells: list[Image.Image] = []
    for triplet in TripletShards(paths).spread(count):
        image, mask = triplet.image, triplet.mask
        cells += [image, with_mask(image, mask), reference_image(image, mask, SIDE)]
        cells.append(written(f"{triplet.caption}\n\n{triplet.record.get('class', '')} ({triplet.key})", SIDE))
    if not cells:
        raise ValueError(f"{paths[0]}: there is no triplet to show")
    return contact_sheet(cells, 4, SIDE)
