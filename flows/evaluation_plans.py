"""The evaluations of a run: the drawn benchmark, what is compared with what, and which shards that takes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from datagen.identity import model_identity
from datagen.masks import mask_stage
from dreamcache.dreambooth.cases import load_benchmark
from dreamcache.dreambooth.config import EvaluationConfig
from dreamcache.dreambooth.evaluation import Evaluation
from dreamcache.dreambooth.models import model_identity as embedder_identity
from dreamcache.held_out import enough_held_out
from flows.profiles import DrawnBenchmark, Profile, miniature_checkpoints
from flows.steps import Step, recipe
from shards.markers import checked_marker
from shards.triplets import TripletShards, triplet_paths

BENCHMARK_VERSION = 1
# Of the miniature's code, what changes no image of its benchmark.
NO_DRAWING = ("adapters.py", "check.py", "distance.py", "figure.py")
EVALUATION_VERSION = 3

# The folders of a run's evaluations: of the adapters just trained, of those that the profile compares them with, and of
# a sweep's points. They share their shards of real images, which lie in the last.
TRAINED, COMPARED, SWEEP, REAL = "evaluation", "evaluation-compared", "sweep/", "real"
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
    config = profile.evaluation
    if name == COMPARED:
        variants = tuple(variant for variant in config.variants if variant in ("adapters", "wrong-reference"))
        config = config.model_copy(update={"variants": variants})
    elif name.startswith(SWEEP):
        config = profile.sweep.configured(config, name.removeprefix(SWEEP))
    found = evaluation_of_adapters(profile, run, name, config, adapters_of(profile, run, name))
    return replace(found, attention=ATTENTION_PICTURES) if name == TRAINED else found


def adapters_of(profile: Profile, run: Path, name: str) -> str:
    """Where the adapters of one of a run's evaluations lie."""
    if name != COMPARED:
        return str(adapters_folder(run))
    assert profile.compare_with is not None
    return profile.compare_with


def evaluation_of_adapters(
    profile: Profile, run: Path, name: str, config: EvaluationConfig, adapters: str
) -> Evaluation:
    """The evaluation, in the run's folder of that name, of adapters wherever they lie."""
    benchmark = load_benchmark(benchmark_folder(profile, run))
    models = {
        "backbone": model_identity(profile.backbone, "backbone"),
        "adapters": model_identity(adapters, "adapters"),
        **embedder_models(profile),
        **ip_adapter_model(profile, config),
    }
    unmasked = not all(subject.mask(image) for subject in benchmark.subjects for image in subject.images)
    stage = mask_stage(profile.dataset.masks) if config.masked_metrics or unmasked else None
    return Evaluation(run / name, benchmark, config, models, stage, real_folder=run / REAL)


def embedder_models(profile: Profile) -> dict[str, str]:
    extra = {} if profile.dinov2 is None else {"dinov2": embedder_identity(profile.dinov2)}
    return {"dino": embedder_identity(profile.dino), "clip": embedder_identity(profile.clip), **extra}


def ip_adapter_model(profile: Profile, config: EvaluationConfig) -> dict[str, str]:
    """The identity of IP-Adapter where an evaluation samples with it; ValueError where the profile has none."""
    if "ip-adapter" not in config.variants:
        return {}
    if profile.ip_adapter is None:
        raise ValueError("the variant ip-adapter needs one: --set ip_adapter=h94/IP-Adapter, or its local folder")
    return {"ip_adapter": model_identity(profile.ip_adapter, "ip_adapter")}


def evaluations(profile: Profile) -> list[str]:
    """The names of a profile's evaluations; other adapters are compared only where the run's own are evaluated."""
    compares = profile.compare_with is not None and "adapters" in profile.evaluation.variants
    return [TRAINED, *([COMPARED] if compares else []), *(f"{SWEEP}{point}" for point in profile.sweep.points())]


def held_out_inputs(profile: Profile, run: Path, name: str) -> dict[str, Any]:
    """What the loss on held-out triplets beside an evaluation of compared adapters is of.

    Empty for other evaluations, and where too few are held out.
    """
    config = profile.training
    if name != COMPARED or not enough_held_out(TripletShards(triplet_paths(run)), config.held_out):
        return {}
    triplets = {path.name: checked_marker(path).shard.sha256 for path in triplet_paths(run)}
    settings = config.model_dump(include={"held_out", "validation_triplets", "min_snr_gamma", "subject_weight"})
    return {"held-out loss": {"triplets": triplets, "dtype": profile.evaluation.dtype, **settings}}


def held_out_file(run: Path) -> Path:
    """Where that loss stands."""
    return run / COMPARED / "held-out.json"


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
    embedded["benchmark"] = hashlib.sha256(json.dumps(_table(evaluation)).encode()).hexdigest()
    settings = evaluation.config.model_dump(mode="json")
    return Step(name, evaluation.folder, recipe(EVALUATION_VERSION, settings, evaluation.models, embedded))


def _table(evaluation: Evaluation) -> list[Any]:
    """What rows and their summary say by the benchmark alone, and no shard of images or embeddings holds."""
    subjects = [
        [one.name, one.class_word, one.live, one.reference.name, one.palette_group] for one in evaluation.subjects
    ]
    return [evaluation.benchmark.name, evaluation.benchmark.digests, subjects]


def shard_changes(evaluation: Evaluation, name: str) -> list[str]:
    """Why an evaluation's shards have to be made, counted by cause."""
    counts: Counter[str] = Counter()
    for plan in evaluation.plans():
        # What is said of a shard itself; that its input is about to change is no cause of its own.
        own = [line for line in plan.changes() if " input " not in line and ".inputs." not in line]
        for line in own:
            counts[line.removeprefix(f"{plan.spec.name}.").removeprefix(f"{plan.name}: ")] += 1
    return [f"{name}: {count} shard{'s' if count > 1 else ''} to make: {cause}" for cause, count in counts.items()]
