"""A finished dataset as a folder for the Hugging Face Hub: the shards, their index, statistics and card, no markers."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from shards.files import TEMPORARY, replace_file, sync_folder, temporary_beside
from shards.markers import checked_marker
from shards.triplets import triplet_paths
from shards.verify import damage

CARD = "README.md"
DESCRIPTION = (CARD, "index.json", "statistics.json")


def described_paths(run: Path) -> list[Path]:
    """The triplet shards of a run, in order, if its card describes just these.

    Raises FileNotFoundError for a run without triplets or card, and ValueError for a card of other shards.
    """
    paths = triplet_paths(run)
    if missing := [name for name in DESCRIPTION if not (run / "triplets" / name).is_file()]:
        raise FileNotFoundError(f"{run} has no {missing[0]} beside its triplets: let its build come to its end first")
    listed = [
        (shard["name"], shard["sha256"])
        for shard in json.loads((run / "triplets" / "index.json").read_bytes())["shards"]
    ]
    if listed != [(path.name, checked_marker(path).shard.sha256) for path in paths]:
        raise ValueError(f"{run}: its card describes other shards than are there; let its build come to its end first")
    return paths


def export_dataset(run: Path, folder: Path, report: Callable[[int, int], None]) -> None:
    """Copy a run's triplet shards and what describes them into a folder that `datasets.load_dataset(folder)` reads.

    What is there already, byte for byte, is not copied again; shards that are no part of the dataset any more, and what
    a killed export left, are removed. Raises as `described_paths`, and ValueError for a torn shard and a folder that
    holds something else.
    """
    paths = described_paths(run)
    described = {name: (run / "triplets" / name).read_bytes() for name in DESCRIPTION}
    names = {path.name for path in paths}
    folder.mkdir(parents=True, exist_ok=True)
    others = {path.name for path in folder.iterdir()} - names - set(DESCRIPTION)
    ours = re.compile(rf"(\d{{5}}\.tar|{'|'.join(map(re.escape, DESCRIPTION))})({TEMPORARY}.+)?")
    strange = [name for name in sorted(others) if not ours.fullmatch(name)]
    if strange:
        raise ValueError(f"{folder} holds {strange[0]}, which is no part of an exported dataset: choose another folder")
    # A folder with a card is complete: the old one goes before anything else does, the new one comes last.
    card = folder / CARD
    for name in others:
        card.unlink(missing_ok=True)
        (folder / name).unlink()
    for number, path in enumerate(paths, 1):
        state, place = checked_marker(path).shard, folder / path.name
        if damage(place, state) is not None:
            card.unlink(missing_ok=True)
            temporary = temporary_beside(place)
            shutil.copyfile(path, temporary)
            if (problem := damage(temporary, state)) is not None:
                temporary.unlink()
                raise ValueError(f"{path}: its copy is {problem}; run dreamcache verify")
            os.replace(temporary, place)
        report(number, len(paths))
    sync_folder(folder)
    for name in reversed(DESCRIPTION):
        replace_file(folder / name, described[name])
