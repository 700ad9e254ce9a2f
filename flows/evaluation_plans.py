"""The evaluations of a run: the drawn benchmark, what is compared with what, and which shards that takes."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from datagen.identity import model_identity
from datagen.masks import MASKS_VERSION
from dreamcache.dreambooth.cases import load_benchmark
from dreamcache.dreambooth.evaluation import Evaluation
from dreamcache.dreambooth.given import given_images
from dreamcache.dreambooth.models import model_identity as embedder_identity
from flows.profiles import DrawnBenchmark, Profile, miniature_checkpoints
from flows.steps import Step, recipe
from shards.markers import checked_marker
from shards.stage import StageSpec
from shards.triplets import triplet_paths

BENCHMARK_VERSION = 1
# Of the miniature's code, what changes no image of its benchmark.
NO_DRAWING = ("adapters.py", "check.py", "figure.py")
EVALUATION_VERSION = 2

# The folders of a run's evaluations: of the adapters just trained, of those that the profile compares them with, of a
# sweep's points, of images that were given, and of the real ones. They share their shards of real images.
TRAINED, COMPARED, SWEEP, GIVEN = "evaluation", "evaluation-compared", "sweep/", "evaluation-of-"
CALIBRATION, REAL = "calibration", "real"
# Of so many of the gallery's pictures with the adapters just trained, where in the reference they look.
ATTENTION_PICTURES = 4


def adapters_folder(run: Path) -> Path:
    """Where a run's trained adapters lie."""
    return run / "training" / "adapters"


def benchmark_step(drawn: DrawnBenchmark, run: Path) -> Step:
    """The miniature's benchmark: its size, and the code that draws it."""
    code = hashlib.sha256()
    for path in sorted(miniature_checkpoints().parent.glob("*.py")):
        if path.name not in NO_DRAWING:
            code.update(path.read_bytes())
    models = {"drawing": code.hexdigest()}
    return Step("benchmark", run / "benchmark", recipe(BENCHMARK_VERSION, drawn.model_dump(), models, {}))


def benchmark_folder(profile: Profile, run: Path) -> Path:
    """Where the benchmark of a run lies: the profile's folder, or the drawn one in the run folder."""
    drawn = isinstance(profile.benchmark, DrawnBenchmark)
    return run / "benchmark" / "images" if drawn else Path(str(profile.benchmark)).expanduser()


def evaluation_of(profile: Profile, run: Path, name: str) -> Evaluation:
    """One of the evaluations of `evaluations`; the benchmark and the adapters must be there.

    That of the compared adapters leaves out what the first has sampled already: the images that need no adapters.
    """
    config, adapters = profile.evaluation, adapters_folder(run)
    if name == COMPARED:
        assert profile.compare_with is not None
        adapters = Path(profile.compare_with)
        variants = tuple(variant for variant in config.variants if variant in ("adapters", "wrong-reference"))
        config = config.model_copy(update={"variants": variants})
    elif name.startswith(SWEEP):
        config = profile.sweep.configured(config, name.removeprefix(SWEEP))
    benchmark = load_benchmark(benchmark_folder(profile, run))
    models = {
        "backbone": model_identity(profile.backbone, "backbone"),
        "adapters": model_identity(str(adapters), "adapters"),
        **embedder_models(profile),
    }
    if "ip-adapter" in config.variants:
        if profile.ip_adapter is None:
            raise ValueError("the variant ip-adapter needs one: --set ip_adapter=h94/IP-Adapter, or its local folder")
        models["ip_adapter"] = model_identity(profile.ip_adapter, "ip_adapter")
    unmasked = not all(subject.mask(image) for subject in benchmark.subjects for image in subject.images)
    stage = _mask_stage(profile) if config.masked_metrics or unmasked else None
    attention = ATTENTION_PICTURES if name == TRAINED else 0
    return Evaluation(run / name, benchmark, config, models, stage, real_folder=run / REAL, attention=attention)


def given_evaluation(profile: Profile, run: Path, name: str, images: Path) -> Evaluation:
    """The evaluation of a folder's images; raises for a folder that does not hold the very images of the cases."""
    config = profile.evaluation.model_copy(update={"variants": ("given",)})
    benchmark = load_benchmark(benchmark_folder(profile, run))
    given = given_images(
        images, benchmark.cases(config.images_per_prompt, config.seed, config.subjects, config.prompts)
    )
    stage = _mask_stage(profile) if config.masked_metrics else None
    folder = scores_folder(run, images, name)
    return Evaluation(folder, benchmark, config, embedder_models(profile), stage, given, run / REAL)


def scores_folder(run: Path, images: Path | None, name: str) -> Path:
    """Where the scores of a folder's images lie in a run folder, or those of the real images for None.

    Raises ValueError for a name that is no plain folder's name.
    """
    if not re.fullmatch(r"[0-9A-Za-z_-]+", name):
        raise ValueError(f"the name {name!r} is not made of letters, digits, _ and -: give another by --name")
    return run / (CALIBRATION if images is None else f"{GIVEN}{name}")


def remaining_scores(profile: Profile, run: Path, images: Path | None, name: str) -> list[str]:
    """What scoring a folder's images, or the real ones for None, would do and why; empty if it is up to date."""
    label = scores_folder(run, images, name).name
    embedder_models(profile)  # a missing model is named before anything is drawn
    if isinstance(profile.benchmark, DrawnBenchmark) and benchmark_step(profile.benchmark, run).changes():
        return [f"{label}: after the benchmark"]
    evaluation = calibration(profile, run) if images is None else given_evaluation(profile, run, name, images)
    step = scored_step(evaluation, label)
    return shard_changes(evaluation, label) if step.missing else step.changes()


def calibration(profile: Profile, run: Path) -> Evaluation:
    """The evaluation of the benchmark's real images alone, of all subjects."""
    config = profile.evaluation.model_copy(update={"variants": (), "subjects": None, "masked_metrics": False})
    benchmark = load_benchmark(benchmark_folder(profile, run))
    return Evaluation(run / CALIBRATION, benchmark, config, embedder_models(profile), real_folder=run / REAL)


def embedder_models(profile: Profile) -> dict[str, str]:
    extra = {} if profile.dinov2 is None else {"dinov2": embedder_identity(profile.dinov2)}
    return {"dino": embedder_identity(profile.dino), "clip": embedder_identity(profile.clip), **extra}


def _mask_stage(profile: Profile) -> StageSpec:
    """The dataset's mask stage, for the benchmark's images and those sampled for it."""
    config = profile.dataset.masks
    models = {role: model_identity(place, f"masks.{role}") for role, place in config.locations().items()}
    return StageSpec("masks", MASKS_VERSION, config.content(), models, ".tar")


def evaluations(profile: Profile) -> list[str]:
    """The names of a profile's evaluations."""
    compared = [] if profile.compare_with is None else [COMPARED]
    return [TRAINED, *compared, *(f"{SWEEP}{point}" for point in profile.sweep.points())]


def held_out_inputs(profile: Profile, run: Path, name: str) -> dict[str, Any]:
    """What the loss on held-out triplets beside an evaluation of compared adapters is of; others have none."""
    if name != COMPARED:
        return {}
    config = profile.training
    triplets = {path.name: checked_marker(path).shard.sha256 for path in triplet_paths(run)}
    settings = config.model_dump(include={"held_out", "validation_triplets", "min_snr_gamma", "subject_weight"})
    return {"held-out loss": {"triplets": triplets, "dtype": profile.evaluation.dtype, **settings}}


def scored_step(evaluation: Evaluation, name: str, inputs: Mapping[str, Any] = MappingProxyType({})) -> Step:
    """The rows and the summary of an evaluation, and whether all of its shards are up to date.

    `inputs` are what files beside these are made from.
    """
    embedded = dict(inputs)
    for plan in evaluation.plans():
        if plan.changes():
            return Step(name, evaluation.folder, recipe(EVALUATION_VERSION, {}, {}, {}), (plan.name,))
    for plan in evaluation.score_plans():
        embedded[f"{plan.spec.name}/{plan.index:05d}"] = checked_marker(plan.path).shard.sha256
    settings = evaluation.config.model_dump(mode="json")
    return Step(name, evaluation.folder, recipe(EVALUATION_VERSION, settings, evaluation.models, embedded))


def shard_changes(evaluation: Evaluation, name: str) -> list[str]:
    """Why an evaluation's shards have to be made, counted by cause."""
    counts: Counter[str] = Counter()
    for plan in evaluation.plans():
        # What is said of a shard itself; that its input is about to change is no cause of its own.
        own = [line for line in plan.changes() if " input " not in line and ".inputs." not in line]
        for line in own:
            counts[line.removeprefix(f"{plan.spec.name}.").removeprefix(f"{plan.name}: ")] += 1
    return [f"{name}: {count} shard{'s' if count > 1 else ''} to make: {cause}" for cause, count in counts.items()]
