"""A finished dataset as a folder for the Hugging Face Hub: the shards, their index, statistics and card, no markers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from shards.files import replace_file, sync_folder, temporary_beside
from shards.markers import checked_marker
from shards.triplets import triplet_paths
from shards.verify import damage

DESCRIPTION = ("README.md", "index.json", "statistics.json")


def export_dataset(run: Path, folder: Path, report: Callable[[int, int], None]) -> None:
    """Copy a run's triplet shards and what describes them into a folder that `datasets.load_dataset(folder)` reads.

    What is there already, byte for byte, is not copied again; shards that are no part of the dataset any more are
    removed. Raises FileNotFoundError for a run without triplets or card, and ValueError for a torn shard, a card
    of other shards, and a folder that holds something else.
    """
    paths = triplet_paths(run)
    described = {name: (run / "triplets" / name).read_bytes() for name in DESCRIPTION}
    listed = [(shard["name"], shard["sha256"]) for shard in json.loads(described["index.json"])["shards"]]
    if listed != [(path.name, checked_marker(path).shard.sha256) for path in paths]:
        raise ValueError(f"{run}: its card describes other shards than are there; let its build come to its end first")
    names = {path.name for path in paths}
    folder.mkdir(parents=True, exist_ok=True)
    others = {path.name for path in folder.iterdir()} - names - set(DESCRIPTION)
    strange = [name for name in sorted(others) if not (name[:5].isdigit() and name[5:].startswith(".tar"))]
    if strange:
        raise ValueError(f"{folder} holds {strange[0]}, which is no part of an exported dataset: choose another folder")
    for name in others:
        (folder / name).unlink()
    for number, path in enumerate(paths, 1):
        state, place = checked_marker(path).shard, folder / path.name
        if damage(place, state) is not None:
            temporary = temporary_beside(place)
            shutil.copyfile(path, temporary)
            if (problem := damage(temporary, state)) is not None:
                temporary.unlink()
                raise ValueError(f"{path}: its copy is {problem}; run dreamcache verify")
            os.replace(temporary, place)
        report(number, len(paths))
    sync_folder(folder)
    # The card comes last: a folder with a card is complete.
    for name in reversed(DESCRIPTION):
        replace_file(folder / name, described[name])
