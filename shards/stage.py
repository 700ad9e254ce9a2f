"""The one mechanism by which every stage turns input shards into an output shard, restartable at any point."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shards import files, memory
from shards.files import HashingFile, add_member, checked_key, json_line
from shards.markers import FileState, Marker, marker_path, read_marker, rejects_path
from shards.recipes import recipe_changes
from shards.store import is_there, is_whole, store_of

State = Literal["done", "missing", "stale"]


@dataclass(frozen=True)
class StageSpec:
    """What determines a stage's output besides its inputs.

    `version` is bumped by hand when the stage's code changes what it writes; `settings` are the content settings (not
    device or batch size); `models` maps a role to the identity of its weights; `suffix` is ".jsonl" or ".tar". Of each
    record of its first input the stage makes `copies`, as `files.copy_keys` names them.
    """

    name: str
    version: int
    settings: Mapping[str, Any]
    models: Mapping[str, str] = field(default_factory=dict)
    suffix: Literal[".jsonl", ".tar"] = ".jsonl"
    copies: int = 1

    def path(self, run: Path, index: int) -> Path:
        """The stage's shard file number `index` in a run folder."""
        return run / self.name / f"{index:05d}{self.suffix}"


@dataclass(frozen=True)
class ShardPlan:
    """One shard to be: its place, and the recipe whose digest decides whether what lies there is up to date."""

    path: Path
    spec: StageSpec
    index: int
    inputs: tuple[Path, ...]
    recipe: dict[str, Any]
    records_in: int | None
    unfinished: tuple[str, ...]

    @property
    def name(self) -> str:
        """Stage and shard as people read them: "images/00003"."""
        return f"{self.spec.name}/{self.index:05d}"

    def sibling(self, index: int) -> Path:
        """The same stage's shard file number `index`."""
        return self.spec.path(self.path.parents[1], index)

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe, 64 hex digits."""
        return hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()

    def state(self) -> State:
        """Whether the shard lies there, made by this recipe and untouched ("done"), or has to be made."""
        marker = read_marker(self.path)
        if marker is None:
            return "missing"
        return "done" if not self._differences(marker) else "stale"

    def changes(self) -> list[str]:
        """Why the shard has to be made, one line a reason; empty if it is done."""
        marker = read_marker(self.path)
        return [f"{self.name}: not made yet"] if marker is None else self._differences(marker)

    def _differences(self, marker: Marker) -> list[str]:
        lines = [f"{self.name}: input {name} is not finished" for name in self.unfinished]
        if marker.digest != self.digest:
            lines += recipe_changes(self.spec.name, marker.recipe, self.recipe, self.unfinished)
        for file, expected in ((self.path, marker.shard), (rejects_path(self.path), marker.rejects)):
            if not is_whole(file, expected):
                lines.append(f"{self.name}: {file.name} is {'torn or altered' if is_there(file) else 'gone'}")
        return lines

    def bring_inputs(self) -> None:
        """Have the inputs here, where the run is on an object store.

        Raises as `Store.bring`, and RuntimeError where one is no longer that which the shard was planned with.
        """
        if (store := store_of(self.path)) is not None:
            for path in self.inputs:
                if store.bring(path).shard.sha256 != self.recipe["inputs"][store.key(path)]:
                    raise RuntimeError(f"{self.name}: its input {store.key(path)} was made anew meanwhile: start again")

    @contextlib.contextmanager
    def writing(
        self, execution: Mapping[str, Any] | None = None, records_in: int | None = None
    ) -> Iterator[ShardWriter]:
        """Write the shard: all of it with its marker, or, after an exception or a kill, nothing.

        `records_in` defaults to what the first input's records come to; the accounts must come out at it. `execution`
        is recorded in the marker as it is in the end, beside the seconds taken and the memory held. Raises ValueError
        if an input is not finished.
        """
        records_in = self.records_in if records_in is None else records_in
        if self.unfinished or records_in is None:
            raise ValueError(f"{self.name}: its input {', '.join(self.unfinished) or 'count'} is not finished")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with files.locked_folder(self.path.parent):
            files.remove_leftovers(self.path, rejects_path(self.path), marker_path(self.path))
            writer = ShardWriter(self, records_in, execution or {})
        try:
            yield writer
            writer.commit()
        finally:
            writer.discard()


class ShardWriter:
    """Takes a stage's records, each to be added or rejected exactly once, and commits them as a shard."""

    def __init__(self, plan: ShardPlan, records_in: int, execution: Mapping[str, Any]) -> None:
        self.plan = plan
        self.records_in = records_in
        self._marker: Marker | None = None
        self._execution = execution
        self._started = time.perf_counter()
        self._keys: set[str] = set()
        self._rejected: Counter[str] = Counter()
        self._data = HashingFile(files.temporary_beside(plan.path))
        self._rejects = HashingFile(files.temporary_beside(rejects_path(plan.path)))
        self._tar: tarfile.TarFile | None = None
        if plan.spec.suffix == ".tar":
            # The stream mode never seeks back, so the checksum can be taken while writing.
            self._tar = tarfile.open(fileobj=self._data, mode="w|", format=tarfile.USTAR_FORMAT)  # type: ignore[call-overload]
        files.reached(f"{plan.name} opened")

    @property
    def marker(self) -> Marker:
        """The finished shard's marker, after the block of `ShardPlan.writing`: ours, or another process's."""
        assert self._marker is not None, "the shard is not committed yet"
        return self._marker

    def add(
        self, record: Mapping[str, Any], parts: Mapping[str, bytes] | None = None, line: bytes | None = None
    ) -> None:
        """Keep a record; in a tar shard it becomes KEY.json, beside one KEY.EXTENSION for each of `parts`.

        `line` is its line in the input, where the stage changed nothing of it: it need not be made again.
        """
        key = self._account(record)
        if self._tar is None:
            assert not parts, "a JSON-lines shard has no room for binary parts"
            self._data.write(line or json_line(record))
            return
        content = {**(parts or {}), "json": json_line(record)}
        for extension in sorted(content):
            add_member(self._tar, f"{key}.{extension}", content[extension])

    def reject(self, record: Mapping[str, Any], reason: str, **details: Any) -> None:
        """Leave a record out: it goes to the rejects file under its reason, a short fixed phrase that is counted."""
        self._account(record)
        self._rejected[reason] += 1
        self._rejects.write(json_line({**record, "reason": reason, **details}))

    def _account(self, record: Mapping[str, Any]) -> str:
        key = checked_key(record.get("key"))
        before = len(self._keys)
        self._keys.add(key)
        if len(self._keys) == before:
            raise ValueError(f"{self.plan.name}: record {key} leaves the stage twice")
        return key

    def commit(self) -> None:
        """Sync, rename, mark. Where another process finished the same shard meanwhile, its work stays and ours goes."""
        plan, rejected = self.plan, self._rejected.total()
        if len(self._keys) != self.records_in:
            accounts = f"{self.records_in} in, but {len(self._keys) - rejected} out and {rejected} rejected"
            raise AssertionError(f"{plan.name}: {accounts}")
        if self._tar is not None:
            self._tar.close()
        files.reached(f"{plan.name} written")
        self._data.sync()
        self._rejects.sync()
        files.reached(f"{plan.name} synced")
        with files.locked_folder(plan.path.parent):
            other = read_marker(plan.path)
            if other is not None and not plan._differences(other):
                self._marker = other
            elif (store := store_of(plan.path)) is not None:
                written = {plan.path: self._data.path, rejects_path(plan.path): self._rejects.path}
                store.publish(plan.path, written, self._made(), self._keep)
            else:
                self._keep(self._made())

    def _made(self) -> Marker:
        """The marker of what was written."""
        rejected = self._rejected.total()
        seconds = round(time.perf_counter() - self._started, 3)
        return Marker(
            digest=self.plan.digest,
            recipe=self.plan.recipe,
            records_in=self.records_in,
            records_out=self.records_in - rejected,
            rejected=dict(sorted(self._rejected.items())),
            shard=_file_state(self._data),
            rejects=_file_state(self._rejects),
            execution={**self._execution, "seconds": seconds, **memory.peaks()},
        )

    def _keep(self, marker: Marker) -> None:
        """Put the shard in its place with its marker; where that is of other bytes, from a store, just the marker."""
        plan, name = self.plan, self.plan.name
        # The old marker goes first: at no moment does a marker stand beside bytes that it does not describe.
        marker_path(plan.path).unlink(missing_ok=True)
        files.sync_folder(plan.path.parent)
        files.reached(f"{name} unmarked")
        for place, written, state in (
            (rejects_path(plan.path), self._rejects, marker.rejects),
            (plan.path, self._data, marker.shard),
        ):
            if written.sha256 == state.sha256:
                os.utime(written.path, ns=(state.mtime_ns, state.mtime_ns))
                os.replace(written.path, place)
            else:
                place.unlink(missing_ok=True)
        files.sync_folder(plan.path.parent)
        files.reached(f"{name} renamed")
        if not files.write_exclusively(marker_path(plan.path), marker.to_json()):
            raise RuntimeError(f"{name}: another process marked this shard while it was being replaced; start again")
        self._marker = marker
        files.reached(f"{name} marked")

    def discard(self) -> None:
        """Remove what was not committed; harmless after `commit`."""
        # What is still buffered goes to files about to be removed; that a full disk refuses it is no second error.
        with contextlib.suppress(OSError):
            if self._tar is not None:
                self._tar.close()
        for file in (self._data, self._rejects):
            file.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                file.close()


def plan_shard(
    run: Path, spec: StageSpec, index: int, inputs: Sequence[Path] = (), chain: str | None = None
) -> ShardPlan:
    """Plan shard `index` of a stage from the markers of its input shards; loads no model and reads no data.

    The first input is the one whose records the stage accounts for. `chain` is a checksum of earlier shards that the
    stage also depends on. Unfinished or torn inputs leave the shard "missing" or "stale" until they are done.
    """
    checksums: dict[str, str | None] = {}
    unfinished = []
    records_in = None
    for position, path in enumerate(inputs):
        name = path.relative_to(run).as_posix() if path.is_relative_to(run) else path.name
        marker = read_marker(path)
        if marker is None or not is_whole(path, marker.shard):
            unfinished.append(name)
        elif position == 0:
            records_in = marker.records_out * spec.copies
        checksums[name] = None if name in unfinished or marker is None else marker.shard.sha256
    if chain is not None:
        checksums["earlier shards"] = chain
    recipe = {
        "stage": spec.name,
        "version": spec.version,
        "settings": spec.settings,
        "models": spec.models,
        "inputs": checksums,
    } | ({"copies": spec.copies} if spec.copies > 1 else {})
    recipe = json.loads(json.dumps(recipe, sort_keys=True, default=dict))
    return ShardPlan(spec.path(run, index), spec, index, tuple(inputs), recipe, records_in, tuple(unfinished))


def _file_state(written: HashingFile) -> FileState:
    return FileState(written.size, written.sha256, written.path.stat().st_mtime_ns)
