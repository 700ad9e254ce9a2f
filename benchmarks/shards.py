"""Shards at speed: `python -m benchmarks.shards` writes and reads triplets, bare tar and bare JPEG decoding beside.

Printed, each a ratio of medians of rounds run by turns: writing with checksums, sync and marker against `tarfile`
alone; strict reading with decoding against decoding the same JPEGs from memory; and whether WebDataset finds all.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from shards.files import add_member, json_line
from shards.triplets import IMAGE, MASK, RECORD, Triplet, TripletShards, write_triplets


def made_up_triplets(count: int, side: int) -> list[Triplet]:
    """Triplets of smooth pictures with some noise, so that a JPEG is as large as one of a photograph."""
    triplets = []
    for number in range(count):
        generator = np.random.default_rng(number)
        rough = Image.fromarray(generator.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8))
        smooth = np.asarray(rough.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(smooth + generator.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
        mask = Image.new("L", (side, side))
        mask.paste(255, (side // 4, side // 4, side // 4 * 3, side // 4 * 3))
        jpg, png = io.BytesIO(), io.BytesIO()
        Image.fromarray(noisy).save(jpg, "JPEG", quality=95)
        mask.save(png, "PNG")
        record = {"key": f"{number:05d}", "caption": "a picture of nothing", "class": "nothing", "area": 0.25}
        triplets.append(Triplet(f"{number:05d}", jpg.getvalue(), png.getvalue(), record))
    return triplets


def write_bare(path: Path, triplets: list[Triplet]) -> None:
    """The same members by `tarfile` alone."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for one in triplets:
            for extension, content in ((IMAGE, one.jpg), (MASK, one.mask_png), (RECORD, json_line(one.record))):
                add_member(tar, f"{one.key}.{extension}", content)


def read_strictly(path: Path) -> None:
    """All triplets of a shard, checked against its marker, their targets decoded."""
    shards = TripletShards([path])
    for index in range(len(shards)):
        shards.read(0, index).image.load()


def decode(triplets: list[Triplet]) -> None:
    """The targets alone, from memory."""
    for one in triplets:
        Image.open(io.BytesIO(one.jpg)).convert("RGB").load()


def median_seconds(cases: dict[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """Each case's median over rounds in which they run by turns, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, case in cases.items():
            started = time.perf_counter()
            case(number)
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def main() -> None:
    """Print all figures, one line each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shards", description=__doc__)
    parser.add_argument("--triplets", type=int, default=512, help="triplets a shard")
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    triplets = made_up_triplets(options.triplets, options.side)
    size = sum(len(one.jpg) + len(one.mask_png) for one in triplets)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        shard = write_triplets(run, 99999, triplets, "benchmark")
        cases: dict[str, Callable[[int], object]] = {
            "bare tar": lambda number: write_bare(run / "bare.tar", triplets),
            "writing": lambda number: write_triplets(run, number, triplets, "benchmark"),
            "decoding": lambda number: decode(triplets),
            "reading": lambda number: read_strictly(shard),
        }
        took = median_seconds(cases, options.rounds)
        for name, seconds in took.items():
            print(f"{name}: {options.triplets / seconds:,.0f} triplets/s, {size / seconds / 1e6:,.0f} MB/s")
        print(f"writing against bare tar: {took['bare tar'] / took['writing']:.3f} of its rate")
        print(f"strict reading against bare JPEG decoding: {took['decoding'] / took['reading']:.3f} of its rate")
        from webdataset import WebDataset

        found = [sample["__key__"] for sample in WebDataset([str(shard)], shardshuffle=False, empty_check=False)]
        print(f"WebDataset reads {len(found)} of {len(triplets)} triplets unaided")
        if found != [one.key for one in triplets]:
            raise SystemExit("WebDataset did not read the shard as it was written")


if __name__ == "__main__":
    main()
