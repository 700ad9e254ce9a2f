"""What training keeps on disk: its exact state, the log, and a lock on the folder."""

import csv
import fcntl
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from shards.files import replace_file, written_at_once

LOG_COLUMNS = ("step", "loss", "lr", "validation_right", "validation_wrong", "validation_none")


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for one training; ValueError if another process trains in it. The lock dies with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is training in {folder}: wait for it or choose another folder") from None
        yield


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the training's state as one file, at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_at_once(path) as file:
        torch.save(dict(state), file)


def load_state(path: Path) -> dict[str, Any] | None:
    """The state that `save_state` wrote, on the CPU, or None if there is none; ValueError if it is torn."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or "step" not in state:
            raise ValueError("no training state")
    except (OSError, MemoryError):  # the system's, not the file's
        raise
    except Exception as error:  # on torn bytes torch.load raises whatever comes up
        raise ValueError(f"{path} cannot be read ({error}): remove it to train from the start") from error
    return state


class TrainingLog:
    """`log.csv`: one row a step, cut back to the resumed step so that no row appears twice."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        self.path = path
        rows: list[Mapping[str, str]] = []
        if path.exists():
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    # A kill may leave half a line at the end; rows past the resumed step are written again.
                    if not (row.get("step") or "").isdigit() or row.get(LOG_COLUMNS[-1]) is None:
                        break
                    if int(row["step"]) <= resumed_step:
                        rows.append(row)
        replace_file(path, _csv([dict(zip(LOG_COLUMNS, LOG_COLUMNS, strict=True)), *rows]).encode())

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows; a column that a row lacks stays empty."""
        with self.path.open("a", newline="") as file:
            file.write(_csv(rows))
            file.flush()
            os.fsync(file.fileno())


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, LOG_COLUMNS, restval="", extrasaction="ignore", lineterminator="\n").writerows(rows)
    return text.getvalue()
