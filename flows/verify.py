"""Whether a run folder is what its configuration and markers say, and the rebuilding of exactly what is not."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datagen.dataset import STAGES, Dataset, explained
from flows.ablations import FOLDER as ABLATIONS
from flows.evaluation_plans import evaluations
from flows.lock import locked
from flows.plans import description_step, evaluation_changes, report_is_current, training_step
from flows.profiles import Profile, recorded_profile
from flows.progress import Progress
from flows.steps import BEGUN, MARKER
from shards.files import TEMPORARY, remove_leftovers
from shards.markers import FileState
from shards.run_folder import is_built
from shards.store import place_of, remove
from shards.transfer import copy_here
from shards.verify import STRAY, Fault, damage, shard_faults

# What makes the folders of a run again that are named so, in order.
MADE_BY = {
    "build-dataset": {*STAGES, "dataset card"},
    "train-adapters": {"training"},
    "evaluate-adapters": {"benchmark", "real", "evaluation", "evaluation-compared", "sweep"},
}


class Verification:
    """What is wrong in a run folder, found when the object is made.

    `faults` are damaged files, `outdated` says what the configuration asks for and is not there, and `unchecked` what
    could not be judged for want of a model; only the first two count.
    """

    def __init__(self, run: Path, report: Callable[[int, int], None] = lambda done, total: None) -> None:
        self.run = run
        self.profile, self.built = recorded_profile(run), is_built(run)
        self.unchecked: list[str] = []
        dataset = self._dataset()
        size = None if dataset is None else _size(dataset)

        def wanted(stage: str, index: int) -> bool:
            return size is None or stage not in STAGES or index < size

        self.faults = [*shard_faults(run, wanted, report), *self._step_faults()]
        self.outdated = [] if self.profile is None else self._outdated(self.profile, dataset, size or 0)

    @property
    def lines(self) -> list[str]:
        """All that is wrong, one line each."""
        return [f"{fault.path.relative_to(self.run)}: {fault.problem}" for fault in self.faults] + self.outdated

    def content(self) -> dict[str, Any]:
        """What was found, as JSON values."""
        faults = [{"file": str(fault.path.relative_to(self.run)), "problem": fault.problem} for fault in self.faults]
        found = {"faults": faults, "outdated": self.outdated, "unchecked": self.unchecked}
        return {"run": place_of(self.run), "right": not self.lines, **found}

    def _dataset(self) -> Dataset | None:
        if self.profile is None or not self.built:
            return None
        try:
            return Dataset(self.profile.dataset, self.run)
        except OSError as error:  # a model that is not here, or the Hub is not reached
            self.unchecked.append(f"whether the dataset is that of config.json: {error}")
            return None

    def _outdated(self, profile: Profile, dataset: Dataset | None, size: int) -> list[str]:
        """What the configuration would have otherwise, apart from what is damaged and what follows from that."""
        lines = [] if dataset is None else self._outdated_shards(dataset, size)
        if self.faults or lines:
            return lines  # what is made from the dataset cannot be judged before
        if dataset is not None and (target := profile.dataset.target_triplets) is not None:
            accepted = sum(dataset.records_out("triplets", range(size)))
            lines += [f"triplets: {accepted} of target_triplets {target}"] if accepted < target else []
        try:
            if dataset is not None and not lines:
                lines += description_step(self.run, profile).changes()
            if (self.run / "training" / BEGUN).is_file():
                lines += training_step(profile, self.run).changes()
            for name in evaluations(profile):
                if not lines and (self.run / name / BEGUN).is_file():
                    lines += evaluation_changes(profile, self.run, name)
        except OSError as error:
            self.unchecked.append(f"whether training and evaluation are those of config.json: {error}")
        if not lines and (self.run / "report.html").is_file() and not report_is_current(profile, self.run):
            lines.append("report.html: shows another state of this run")
        return lines

    def _outdated_shards(self, dataset: Dataset, size: int) -> list[str]:
        damaged = {fault.path.parent.name + "/" + fault.path.name.partition(".")[0] for fault in self.faults}
        planned = [*dataset.planned(range(size)), *dataset.surplus(size)]
        own = [shard for shard in planned if shard.fate in ("remake", "surplus") and shard.plan.name not in damaged]
        return explained(own)

    def _step_faults(self) -> Iterator[Fault]:
        for marker in sorted(self.run.rglob(MARKER)):
            if "." in marker.parent.name:
                continue  # set aside when other settings were taken
            try:
                outputs = json.loads(marker.read_bytes())["outputs"]
                states = {marker.parent / file: FileState(**state) for file, state in outputs.items()}
            except (ValueError, KeyError, TypeError, AttributeError):
                yield Fault(marker, "not a readable marker", marker)
                continue
            for path, state in states.items():
                if (problem := damage(path, state)) is not None:
                    yield Fault(path, problem, marker)

    def withdraw(self) -> None:
        """Remove what is wrong: stray temporary files, and the markers that vouch for what is damaged."""
        for fault in self.faults:
            if fault.problem == STRAY and TEMPORARY in fault.path.name:
                remove_leftovers(fault.path.with_name(fault.path.name.partition(TEMPORARY)[0]))
            elif fault.problem == STRAY:
                fault.path.unlink(missing_ok=True)
            elif fault.marker is not None:
                remove(fault.marker)

    def left_to(self) -> set[str]:
        """Damaged folders that no repair makes again, with the command that does: it had settings of its own."""
        others = self._damaged_folders() - set().union(*MADE_BY.values())
        return {f"{name} (dreamcache {'ablate' if name == ABLATIONS else 'evaluate'})" for name in others}

    def _damaged_folders(self) -> set[str]:
        return {fault.path.relative_to(self.run).parts[0] for fault in self.faults if fault.problem != STRAY}

    def commands(self) -> list[str]:
        """The commands that make again what was withdrawn or is outdated, in their order."""
        # A line begins with a folder, a setting of it or something in it: "gates:", "training.steps:", "sweep/text-5:".
        touched = self._damaged_folders() | {re.split("[:./]", line)[0] for line in self.outdated}
        return [command for command, folders in MADE_BY.items() if touched & folders]


def _size(dataset: Dataset) -> int:
    """How many shards belong to a dataset: as configured or, with a target, as far as its blocks go."""
    if dataset.config.target_triplets is None:
        return dataset.config.shards or 0
    size = 0
    try:
        for block in dataset.blocks():
            size = block.stop
    except RuntimeError:
        pass  # the target is not reached yet
    return size


def verify_run(run: Path, make_again: Callable[[str, Profile], None] | None = None) -> Verification:
    """Print what is wrong in a run folder and let `make_again(command, profile)` mend it; returns what was found last.

    Raises ValueError where a command that is not recorded made what was damaged.
    """
    left: set[str] = set()
    # What was mended may have come out otherwise than before: then training follows the dataset, evaluation training.
    for rounds_left in (3, 2, 1, 0) if make_again else (0,):
        with locked(run) if os.access(run, os.W_OK) else contextlib.nullcontext():
            copy_here(run, Progress("brought", "files"))
            found = Verification(run, Progress("checked", "shards"))
            for line in (*found.lines, *(f"not checked: {text}" for text in found.unchecked)):
                print(line, flush=True)
            if not found.lines:
                print(f"{place_of(run)}: every marker, checksum, count and key is right.")
                break
            if rounds_left:
                found.withdraw()
                left |= found.left_to()
        if rounds_left and make_again:
            commands = found.commands()
            if found.profile is None or ("build-dataset" in commands and not found.built):
                raise ValueError(
                    f"{place_of(run)} was imported or merged: give that command again to make what was withdrawn"
                )
            for command in commands:
                make_again(command, found.profile)
            if (run / "report.html").is_file():
                from flows.report import write_report

                write_report(found.profile, run)
    if left:
        raise ValueError(f"what was damaged is withdrawn, and by its own command made again: {', '.join(sorted(left))}")
    return found
