"""A run's evaluations on workers: their subjects in blocks, and the masks of references before all else."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dreamcache.dreambooth.cases import Subject
from dreamcache.dreambooth.evaluation import Evaluation
from flows.dispatch import Workers, made_on_workers
from flows.evaluation_plans import COMPARED, evaluation_of, evaluations, held_out_file, held_out_inputs
from flows.plans import evaluation_step
from flows.profiles import Profile
from shards.stage import ShardPlan


def make_on_workers(profile: Profile, run: Path) -> None:
    """Have the shards of all of a run's evaluations made by the workers that its profile names, if it names any.

    The caller, a flow, has drawn the benchmark. Raises what `made_on_workers` does.
    """
    workers = Workers.of(profile, run, profile.workers.evaluation)
    if workers is None:
        return
    outdated = [name for name in evaluations(profile) if evaluation_step(profile, run, name).changes()]
    if not outdated:
        return
    if COMPARED in outdated:
        held_out_file(run).unlink(missing_ok=True)  # so that the one found in the end is of these settings
    with_loss = {name for name in outdated if held_out_inputs(profile, run, name)}
    found = {name: evaluation_of(profile, run, name) for name in outdated}
    blocks = _Blocks(found, with_loss, profile.workers.subjects_per_block)
    with closing(made_on_workers(workers, blocks.next_block, blocks.so_far)) as made:
        for block in made:
            blocks.made.append(block)


@dataclass(frozen=True)
class _Block:
    """Some subjects of an evaluation: the masks of their real images, or what comes after all of these."""

    label: str
    whole: Evaluation
    numbers: range
    references: bool = False
    file: Path | None = None

    @property
    def name(self) -> str:
        what = f"references of {self.label}" if self.references else self.label
        return f"{what} {self.numbers.start:05d} to {self.numbers.stop - 1:05d}"

    @property
    def parameters(self) -> dict[str, Any]:
        part = {"evaluation": self.label, "references": self.references}
        return {**part, "first": self.numbers.start, "last": self.numbers.stop - 1}

    def plans(self) -> list[ShardPlan]:
        """The block's shards."""
        evaluation = replace(self.whole, block=self.numbers)
        return [plan for *_, plan in evaluation.mask_plans(True)] if self.references else evaluation.plans()

    def is_made(self) -> bool:
        return all(plan.state() == "done" for plan in self.plans()) and (self.file is None or self.file.is_file())


class _Blocks:
    """Which blocks of a run's evaluations there are, and which are made."""

    def __init__(self, found: dict[str, Evaluation], with_loss: set[str], size: int) -> None:
        self.made: list[_Block] = []
        self.references: list[_Block] = []
        self.rest: list[_Block] = []
        masks: set[Path] = set()  # the evaluations share them
        for label, evaluation in found.items():
            for numbers in _cut(evaluation, evaluation.benchmark.subjects, size):
                block = _Block(label, evaluation, numbers, references=True)
                paths = {plan.path for plan in block.plans()}
                self.references += [block] if paths - masks else []
                masks |= paths
            for numbers in _cut(evaluation, evaluation.subjects, size):
                first = label in with_loss and not any(block.label == label for block in self.rest)
                file = held_out_file(evaluation.folder.parent) if first else None
                self.rest.append(_Block(label, evaluation, numbers, file=file))
        self._waiting = deque(self.references + self.rest)

    def next_block(self) -> _Block | None:
        """What to make next; no image before all masks of references are there."""
        if not self._waiting or (not self._waiting[0].references and len(self.made) < len(self.references)):
            return None
        return self._waiting.popleft()

    def so_far(self) -> str:
        return f"{len(self.made)} of {len(self.references) + len(self.rest)} blocks finished"


def _cut(evaluation: Evaluation, subjects: Sequence[Subject], size: int) -> list[range]:
    """The numbers in the benchmark's table from the first to the last of every so many subjects."""
    numbers = [evaluation.benchmark.subjects.index(subject) for subject in subjects]
    parts = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    return [range(part[0], part[-1] + 1) for part in parts]
