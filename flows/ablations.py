"""The rows of the paper's ablations: each is a run folder below the run's own, whose dataset it shares."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datagen.dataset import STAGES
from dreamcache.ablations import IMAGE_SCALE, TABLES, Line, Table
from flows.evaluation_plans import REAL, TRAINED
from flows.plans import evaluation_changes, training_step
from flows.profiles import DrawnBenchmark, Profile, with_dataset_of
from flows.settings import nearest_of, with_settings

FOLDER, DEFAULT = "ablations", "default"
SCALE_SETTING = "evaluation.sampling.image_guidance_scale"


@dataclass(frozen=True)
class AblationRow:
    """One training and its evaluation: the profile with a few settings changed, in a run folder of its own.

    `trained_in` is the folder of the row whose adapters it samples with, where that is not itself.
    """

    name: str
    variant: str
    repeat: int
    settings: dict[str, Any]
    profile: Profile
    folder: Path
    trained_in: Path

    def remaining(self) -> list[str]:
        """What is to be done for this row and why, one line a thing; empty if it is up to date."""
        if not self.folder.is_dir():
            return ["not begun"]
        training = training_step(self.profile, self.folder).changes()
        return training or evaluation_changes(self.profile, self.folder, TRAINED)

    def prepare(self, run: Path) -> None:
        """Make the folder, with the run's dataset, benchmark and shards of real images in it as links."""
        (run / REAL).mkdir(exist_ok=True)
        shared = {name: run / name for name in (*STAGES, REAL) if (run / name).is_dir()}
        if isinstance(self.profile.benchmark, DrawnBenchmark):
            shared["benchmark"] = run / "benchmark"
        if self.trained_in != self.folder:
            shared["training"] = self.trained_in / "training"
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, place in shared.items():
            if not os.path.lexists(self.folder / name):
                os.symlink(os.path.relpath(place, self.folder), self.folder / name)


class Study:
    """The rows of the paper's ablations for a profile and a run folder, the default first.

    Lines of several tables that come to the same settings are one variant, a variant and a seed are a row, and rows of
    the same training share it.
    """

    def __init__(self, profile: Profile, run: Path) -> None:
        self.folder = run / FOLDER
        alone = {"evaluation.variants": ("adapters",), "sweep.image_scales": (), "sweep.text_scales": ()}
        self.base = with_settings(with_dataset_of(run, profile), {**alone, "compare_with": None})
        self.settings: dict[str, dict[str, Any]] = {DEFAULT: {}}
        # Of every line, and of the default, the variant that it is.
        self.variants = {DEFAULT: DEFAULT}
        self._profiles = {DEFAULT: self.base}
        for table in TABLES.values():
            for line in table.lines:
                settings = self._settings(table, line)
                made = with_settings(self.base, settings)
                name = next((name for name, other in self._profiles.items() if other == made), line.name)
                self.variants[line.name] = name
                self._profiles.setdefault(name, made)
                self.settings.setdefault(name, settings)

    def rows(self, only: Sequence[str] = (), repeats: int = 1) -> list[AblationRow]:
        """The rows to be made, seed by seed; `only` names lines or tables, and what they are compared with comes along.

        Of several seeds the further ones are for the variants whose published scores are close to their baseline's, or
        for all where `only` names some. ValueError for a name that does not exist, and for rows at other image scales
        where guidance has none.
        """
        names = {line: [line] for line in self.variants}
        names |= {kind: [line.name for line in table.lines] for kind, table in TABLES.items()}
        if wrong := [name for name in only if name not in names]:
            raise ValueError(f"there is no row or table {wrong[0]}{nearest_of(wrong[0], names)}")
        asked = {self.variants[line] for name in only for line in names[name]} or set(self.settings)
        if any(SCALE_SETTING in self.settings[variant] for variant in asked):
            self.base.evaluation.sampling.require_image_scale("the table image-scale (--only names others)")
        chosen = {DEFAULT, *asked, *(self.baseline(variant) for variant in asked)}
        close = {self.variants[line.name] for table in TABLES.values() for line in table.close()}
        again = chosen if only else close
        return [
            self.row(variant, repeat)
            for repeat in range(repeats)
            for variant in self.settings
            if variant in chosen and (not repeat or variant in again)
        ]

    def finished(self) -> list[AblationRow]:
        """All rows in the run folder that are up to date, whether they were asked for or not."""
        found, repeat = [], 0
        while there := [row for variant in self.settings if (row := self.row(variant, repeat)).folder.is_dir()]:
            found += there
            repeat += 1
        return [row for row in found if not row.remaining()]

    def row(self, variant: str, repeat: int) -> AblationRow:
        """A variant trained with the profile's seed or, for a `repeat` above 0, one that is larger by it."""
        own, settings = self._profiles[variant], dict(self.settings[variant])
        first = next(name for name, other in self._profiles.items() if other.training == own.training)
        if repeat:
            settings["training.seed"] = self.base.training.seed + repeat
        profile = with_settings(self.base, settings)
        if variant == DEFAULT and not repeat:  # beside it, what all of them start from
            profile = with_settings(profile, {"evaluation.variants": ("no-adapters", "adapters")})
        folder, trained_in = (self.folder / (f"{name}-{repeat + 1}" if repeat else name) for name in (variant, first))
        return AblationRow(folder.name, variant, repeat, settings, profile, folder, trained_in)

    def baseline(self, variant: str) -> str:
        """The variant that one is compared with."""
        for table in TABLES.values():
            if variant in (self.variants[line.name] for line in table.lines):
                return self.variants[table.baseline.name]
        return DEFAULT

    def _settings(self, table: Table, line: Line) -> dict[str, Any]:
        settings = {**table.common, **line.settings}
        if (times := settings.pop(IMAGE_SCALE, None)) is not None:
            scale = self.base.evaluation.sampling.image_guidance_scale
            settings[SCALE_SETTING] = scale * times
        return settings
