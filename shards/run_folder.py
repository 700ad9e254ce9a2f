"""Where a run lies: a folder here, or on an object store, whose mirror here is then worked in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from shards.markers import MARKER_SUFFIX, parsed_marker


def is_built(run: Path) -> bool:
    """Whether a build of captions and all that follows made a run folder's dataset, not an import or a merge."""
    return (run / "captions").is_dir()


def origin(run: Path) -> Literal["built", "imported", "merged", "written"] | None:
    """How the dataset in a run folder came there, by its markers; None where there is none."""
    if is_built(run):
        return "built"
    for _, settings in _first_settings(run):
        return "imported" if "layout" in settings else "merged" if "run" in settings else "written"
    return None


def require_buildable(run: Path) -> None:
    """ValueError where the dataset in a run folder was imported or merged: a build there would take its place."""
    if (how := origin(run)) in ("imported", "merged"):
        advice = "train-adapters and evaluate-adapters go on from it, a build needs a folder of its own"
        raise ValueError(f"{run} holds a dataset that was {how} there: {advice}")


def imported_stage(run: Path) -> str | None:
    """The stage whose shards an import brought into a run folder: images, of pairs, or triplets; None without one."""
    return next((stage for stage, settings in _first_settings(run) if "layout" in settings), None)


def _first_settings(run: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The settings in a marker of each stage that a dataset may begin with: of pairs, triplets are made of images."""
    for stage in ("images", "triplets"):
        markers = (parsed_marker(path.read_bytes()) for path in (run / stage).glob(f"*{MARKER_SUFFIX}"))
        if (marker := next((marker for marker in markers if marker is not None), None)) is not None:
            yield stage, marker.recipe["settings"]


def as_url(place: str | Path) -> str | None:
    """The URL that is meant, also where it was taken for a path, which has one slash less; None for a path."""
    found = re.fullmatch(r"([a-z][a-z0-9+.-]+):/+(.+)", str(place))
    return None if found is None else f"{found[1]}://{found[2]}"


def run_folder(run: str | Path, writing: bool = True) -> Path:
    """The folder to work in: the path itself, or the mirror of a run on an object store as it is now.

    Raises ValueError, in one line, for a store that is not there or not to be used.
    """
    if (url := as_url(run)) is None:
        return Path(run)
    from shards.store import open_store

    return open_store(url, writing)


def local_folder(run: str | Path) -> Path:
    """The path itself; ValueError, naming the command that copies it here, for a run on an object store."""
    if as_url(run) is None:
        return Path(run)
    raise ValueError(needs_a_folder(run))


def needs_a_folder(run: str | Path) -> str:
    """What to do about a run on an object store where only a local one will do."""
    return f"a local run folder is needed here: dreamcache pull {as_url(run)} FOLDER copies it"
