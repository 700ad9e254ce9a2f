"""What `dreamcache evaluate` scores: images or adapters that no run made, or the benchmark's real images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from datagen.masks import mask_stage
from dreamcache.dreambooth.cases import load_benchmark
from dreamcache.dreambooth.evaluation import Evaluation
from dreamcache.dreambooth.given import given_images
from flows.evaluation_plans import (
    REAL,
    benchmark_folder,
    benchmark_step,
    embedder_models,
    evaluation_of_adapters,
    scored_step,
    shard_changes,
)
from flows.profiles import DrawnBenchmark, Profile

# The folders of their scores in a run folder.
GIVEN, CALIBRATION = "evaluation-of-", "calibration"


@dataclass(frozen=True)
class Given:
    """A folder of images, or adapters (a folder, a Hub name, the authors' released file); for neither, the real images.

    `name` is what the scores are called, by default the place's own name. ValueError for both at once, and for a name
    that is no plain folder's name.
    """

    images: str | None = None
    adapters: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.images is not None and self.adapters is not None:
            raise ValueError("images and adapters are both given: score one of them at a time")
        name = self.label.removeprefix(GIVEN)
        if not re.fullmatch(r"[0-9A-Za-z_-]+", name):
            raise ValueError(f"the name {name!r} is not made of letters, digits, _ and -: give another by --name")

    @property
    def label(self) -> str:
        """The name of the folder in the run folder in which the scores lie."""
        if (given := self.images or self.adapters) is None:
            return CALIBRATION
        place = Path(given)
        return GIVEN + (self.name or (place.stem if place.suffix == ".pt" else place.name))

    def evaluation(self, profile: Profile, run: Path) -> Evaluation:
        """Its evaluation; the benchmark must be there. Raises for images that are not the very images of the cases."""
        folder = run / self.label
        if self.adapters is not None:
            return evaluation_of_adapters(profile, run, self.label, profile.evaluation, self.adapters)
        benchmark, config = load_benchmark(benchmark_folder(profile, run)), profile.evaluation
        if self.images is None:
            config = config.model_copy(update={"variants": (), "subjects": None, "masked_metrics": False})
            return Evaluation(folder, benchmark, config, embedder_models(profile), real_folder=run / REAL)
        config = config.model_copy(update={"variants": ("given",)})
        cases = benchmark.cases(config.images_per_prompt, config.seed, config.subjects, config.prompts)
        images = given_images(Path(self.images), cases)
        stage = mask_stage(profile.dataset.masks) if config.masked_metrics else None
        return Evaluation(folder, benchmark, config, embedder_models(profile), stage, images, run / REAL)

    def remaining(self, profile: Profile, run: Path) -> list[str]:
        """What scoring would do and why; empty if it is up to date."""
        embedder_models(profile)  # a missing model is named before anything is drawn
        if isinstance(profile.benchmark, DrawnBenchmark) and benchmark_step(profile.benchmark, run).changes():
            return [f"{self.label}: after the benchmark"]
        evaluation = self.evaluation(profile, run)
        step = scored_step(evaluation, self.label)
        return shard_changes(evaluation, self.label) if step.missing else step.changes()
