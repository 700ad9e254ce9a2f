"""Completion markers of the steps that make a folder (training, evaluation, report), where a stage makes a shard."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.files import replace_file, sha256_of, write_exclusively
from shards.markers import FileState
from shards.recipes import recipe_changes

MARKER = "done.json"
BEGUN = "begun.json"


@dataclass(frozen=True)
class Step:
    """A folder to be made, and the recipe (settings, models, inputs) whose digest decides whether it is up to date.

    As with a shard, the marker `done.json` is written last and is the only truth about what is done; `begun.json` says
    what an unfinished folder was begun with, so that only work of the same recipe is resumed. `missing` names the
    inputs that are not finished; `extendable` the settings of which a larger value goes on with the same work, `free`
    those of which any other value does.
    """

    name: str
    folder: Path
    recipe: dict[str, Any]
    missing: tuple[str, ...] = ()
    extendable: frozenset[str] = frozenset()
    free: frozenset[str] = frozenset()

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe, 64 hex digits."""
        return hashlib.sha256(_json(self.recipe)).hexdigest()

    def marker(self) -> dict[str, Any] | None:
        """What the marker says (recipe, outputs, execution), or None where there is none that can be read."""
        return _read(self.folder / MARKER)

    def changes(self) -> list[str]:
        """Why the step has to be done, one line a reason; empty if it is done and its files are untouched."""
        marker = self.marker()
        if self.missing:
            return [f"{self.name}: {name} is not finished" for name in self.missing]
        if marker is None:
            return [f"{self.name}: {'not finished' if (self.folder / BEGUN).exists() else 'not made yet'}"]
        lines = recipe_changes(self.name, marker["recipe"], self.recipe)
        for name, state in marker["outputs"].items():
            if not FileState(**state).matches(self.folder / name):
                lines.append(f"{self.name}: {name} is {'altered' if (self.folder / name).exists() else 'gone'}")
        return lines

    def begin(self) -> Path | None:
        """Make the folder ready for the work, resuming what this recipe began; returns where other work went.

        Work of another recipe may have cost days: it is set aside under a name with its digest, never deleted.
        """
        aside = None
        begun = _read(self.folder / BEGUN)
        if begun is not None and not self._continues(begun["recipe"]):
            digest = hashlib.sha256(_json(begun["recipe"])).hexdigest()
            taken = len(list(self.folder.parent.glob(f"{self.folder.name}.{digest[:8]}*")))
            aside = self.folder.with_name(f"{self.folder.name}.{digest[:8]}{f'-{taken + 1}' if taken else ''}")
            os.rename(self.folder, aside)
        self.reopen()
        return aside

    def _continues(self, begun: dict[str, Any]) -> bool:
        before, after = dict(begun["settings"]), dict(self.recipe["settings"])
        for name in self.extendable & before.keys() & after.keys():
            if before.pop(name) > after.pop(name):
                return False
        for name in self.free & before.keys():
            before[name] = after.get(name)
        return {**begun, "settings": before} == {**self.recipe, "settings": after}

    def reopen(self) -> None:
        """Make the folder ready for work whose parts know themselves whether they are up to date."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / MARKER).unlink(missing_ok=True)
        # In the old one's place: at no moment does work lie there of which nothing says what it was begun with.
        replace_file(self.folder / BEGUN, _json({"recipe": self.recipe}))

    def finish(self, outputs: Iterable[Path], execution: Mapping[str, Any]) -> None:
        """Mark the step done: its recipe, the checksums of the named files, and how it went (seconds, device, ...)."""
        states = {}
        for path in outputs:
            status = path.stat()
            state = FileState(status.st_size, sha256_of(path), status.st_mtime_ns)
            states[path.relative_to(self.folder).as_posix()] = asdict(state)
        content = {"recipe": self.recipe, "outputs": states, "execution": dict(execution)}
        write_exclusively(self.folder / MARKER, _json(content))


def recipe(
    version: int, settings: Mapping[str, Any], models: Mapping[str, str], inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """A step's recipe in the form in which it is read back from a marker."""
    content = {"version": version, "settings": settings, "models": models, "inputs": inputs}
    return dict(json.loads(json.dumps(content)))


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True, default=str).encode() + b"\n"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
        return content if "recipe" in content else None
    except (FileNotFoundError, ValueError, TypeError):
        return None
