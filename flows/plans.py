"""What a run's steps are made from, and so whether they are up to date; no model is loaded here, and no Prefect."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datagen.dataset import STAGES, Dataset, explained
from datagen.identity import model_identity
from datagen.licences import model_terms
from dreamcache.dreambooth.cases import load_benchmark
from dreamcache.dreambooth.evaluation import Evaluation
from dreamcache.dreambooth.models import model_identity as embedder_identity
from flows.profiles import DrawnBenchmark, Profile, miniature_checkpoints
from flows.steps import Step
from shards.markers import Marker, checked_marker, read_marker
from shards.triplets import triplet_paths

DESCRIPTION_VERSION = 1
TRAINING_VERSION = 1
BENCHMARK_VERSION = 1
EVALUATION_VERSION = 1
REPORT_VERSION = 1

# The folders of the two evaluations, of the adapters just trained and of those that the profile compares them with.
TRAINED, COMPARED = "evaluation", "evaluation-compared"


def recipe(
    version: int, settings: Mapping[str, Any], models: Mapping[str, str], inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """A step's recipe in the form in which it is read back from a marker."""
    content = {"version": version, "settings": settings, "models": models, "inputs": inputs}
    return dict(json.loads(json.dumps(content)))


def training_step(profile: Profile, run: Path) -> Step:
    """Training: its settings, the backbone, and the triplet shards."""
    models = {"backbone": model_identity(profile.backbone, "backbone")}
    settings = profile.training.model_dump(mode="json")
    try:
        paths = triplet_paths(run)
    except FileNotFoundError:
        return Step("training", run / "training", recipe(TRAINING_VERSION, settings, models, {}), ("the dataset",))
    markers = {path.relative_to(run).as_posix(): checked_marker(path) for path in paths}
    if outdated := [name for name, marker in markers.items() if _is_outdated(marker, run)]:
        missing = (f"the dataset ({outdated[0]} is older than what it was made from)",)
        return Step("training", run / "training", recipe(TRAINING_VERSION, settings, models, {}), missing)
    inputs = {name: marker.shard.sha256 for name, marker in markers.items()}
    made_from = recipe(TRAINING_VERSION, settings, models, inputs)
    return Step("training", run / "training", made_from, extendable=frozenset({"steps"}))


def _is_outdated(marker: Marker, run: Path) -> bool:
    """Whether a shard's inputs were made again since, by a build of the dataset that has not come to its end."""
    inputs = ((read_marker(run / name), sha256) for name, sha256 in marker.recipe["inputs"].items())
    return any(now is not None and now.shard.sha256 != sha256 for now, sha256 in inputs)


def description_step(run: Path, profile: Profile | None = None) -> Step:
    """The statistics, index and card beside a run's triplets: all markers' checksums, and the terms of the models."""
    inputs: dict[str, Any] = {}
    missing: tuple[str, ...] = ()
    try:
        for stage, markers in dataset_markers(run, triplet_paths(run)).items():
            inputs |= {f"{stage}/{name}": f"{m.shard.sha256} {m.rejects.sha256}" for name, m in markers.items()}
    except FileNotFoundError:
        missing = ("the dataset",)
    terms = {} if profile is None else _model_terms(profile)
    return Step("dataset card", run / "triplets", recipe(DESCRIPTION_VERSION, {}, terms, inputs), missing)


def dataset_markers(run: Path, paths: Sequence[Path]) -> dict[str, dict[str, Marker]]:
    """The markers, by stage and number, of triplet shards and of the shards that they were made from."""
    found = {stage: {path.stem: read_marker(run / stage / path.name) for path in paths} for stage in STAGES}
    present = {stage: {name: m for name, m in markers.items() if m is not None} for stage, markers in found.items()}
    return {stage: markers for stage, markers in present.items() if markers}


def _model_terms(profile: Profile) -> dict[str, str]:
    """Model identity -> terms of use, of the models that make a profile's dataset."""
    terms = {}
    for config in (profile.dataset.captions, profile.dataset.images, profile.dataset.masks):
        for role, location in config.locations().items():
            if role == "taxonomy":
                continue
            ours = Path(location).is_relative_to(miniature_checkpoints())
            text = "Apache-2.0, trained by this project" if ours else model_terms(location)
            with contextlib.suppress(FileNotFoundError):  # an import of pairs needs but some of the models
                if text is not None:
                    terms[model_identity(location, role)] = text
    return terms


def adapters_folder(run: Path) -> Path:
    """Where a run's trained adapters lie."""
    return run / "training" / "adapters"


def benchmark_step(drawn: DrawnBenchmark, run: Path) -> Step:
    """The miniature's benchmark: its size, and the code that draws it."""
    code = hashlib.sha256()
    for path in sorted(miniature_checkpoints().parent.glob("*.py")):
        code.update(path.read_bytes())
    models = {"drawing": code.hexdigest()}
    return Step("benchmark", run / "benchmark", recipe(BENCHMARK_VERSION, drawn.model_dump(), models, {}))


def benchmark_folder(profile: Profile, run: Path) -> Path:
    """Where the benchmark of a run lies: the profile's folder, or the drawn one in the run folder."""
    drawn = isinstance(profile.benchmark, DrawnBenchmark)
    return run / "benchmark" / "images" if drawn else Path(str(profile.benchmark)).expanduser()


def evaluation_of(profile: Profile, run: Path, name: str) -> Evaluation:
    """One of the two evaluations, TRAINED or COMPARED; the benchmark and the adapters must be there.

    The second one leaves out what the first has sampled already: the images that need no adapters.
    """
    config, adapters = profile.evaluation, adapters_folder(run)
    if name == COMPARED:
        assert profile.compare_with is not None
        adapters = Path(profile.compare_with)
        variants = tuple(variant for variant in config.variants if variant in ("adapters", "wrong-reference"))
        config = config.model_copy(update={"variants": variants})
    models = {
        "backbone": model_identity(profile.backbone, "backbone"),
        "adapters": model_identity(str(adapters), "adapters"),
        "dino": embedder_identity(profile.dino),
        "clip": embedder_identity(profile.clip),
    }
    return Evaluation(run / name, load_benchmark(benchmark_folder(profile, run)), config, models)


def evaluations(profile: Profile) -> list[str]:
    """The names of a profile's evaluations."""
    return [TRAINED] if profile.compare_with is None else [TRAINED, COMPARED]


def evaluation_step(profile: Profile, run: Path, name: str) -> Step:
    """An evaluation as a whole: its rows and its summary, made from shards that have markers of their own."""
    missing = []
    if training_step(profile, run).changes():
        missing.append("the training")
    if isinstance(profile.benchmark, DrawnBenchmark) and benchmark_step(profile.benchmark, run).changes():
        missing.append("the benchmark")
    if missing:
        return Step(name, run / name, recipe(EVALUATION_VERSION, {}, {}, {}), tuple(missing))
    evaluation = evaluation_of(profile, run, name)
    embedded = {}
    for *_, plan in evaluation.embedding_plans():
        if plan.changes():
            return Step(name, run / name, recipe(EVALUATION_VERSION, {}, {}, {}), (plan.name,))
        embedded[f"{plan.spec.name}/{plan.index:05d}"] = checked_marker(plan.path).shard.sha256
    settings = evaluation.config.model_dump(mode="json")
    return Step(name, run / name, recipe(EVALUATION_VERSION, settings, evaluation.models, embedded))


def report_digest(profile: Profile, run: Path) -> str:
    """The SHA-256 over all that a report shows: the configuration and every marker in the run folder."""
    total = hashlib.sha256(f"{REPORT_VERSION} {run} {profile.model_dump_json()}".encode())
    for path in sorted(run.rglob("*done.json")):
        total.update(path.relative_to(run).as_posix().encode() + path.read_bytes())
    return total.hexdigest()


def report_is_current(profile: Profile, run: Path) -> bool:
    """Whether report.html, which carries the digest of what it shows, shows what lies in the run folder now."""
    path = run / "report.html"
    return path.is_file() and report_digest(profile, run) in path.read_text(encoding="utf-8")[:1000]


def pending(command: str, profile: Profile, run: Path) -> list[str]:
    """What a command would do in a run folder and why, one line a thing; empty if all is up to date.

    `command` is "run", "build-dataset", "train-adapters" or "evaluate-adapters". Raises FileNotFoundError for a model
    that is not there.
    """
    if command in ("run", "evaluate-adapters"):
        check_models(profile)
    lines: list[str] = []
    if command in ("run", "build-dataset"):
        lines += explained(Dataset(profile.dataset, run).remaining())
    undescribed = [] if lines or command not in ("run", "build-dataset") else description_step(run, profile).changes()
    if command in ("run", "train-adapters"):
        lines += ["training: after the dataset"] if lines else training_step(profile, run).changes()
    if command in ("run", "evaluate-adapters"):
        untrained = bool(lines)
        for name in evaluations(profile):
            lines += [f"{name}: after the training"] if untrained else evaluation_changes(profile, run, name)
    lines += undescribed
    if command == "run" and (lines or not report_is_current(profile, run)):
        lines.append("report: after the evaluation" if lines else "report: to write")
    return lines


def check_inputs(command: str, profile: Profile, run: Path) -> None:
    """Raise FileNotFoundError, naming the command to run first, where a command's input is not finished."""
    if command == "train-adapters" and (missing := training_step(profile, run).missing):
        raise FileNotFoundError(f"{run}: {missing[0]} is not finished: run build-dataset for it first")
    if command == "evaluate-adapters" and training_step(profile, run).changes():
        raise FileNotFoundError(f"{run} holds no adapters trained by these settings: run train-adapters first")


def check_models(profile: Profile) -> None:
    """Raise FileNotFoundError for a model or a benchmark that only a late step would miss."""
    model_identity(profile.backbone, "backbone")
    embedder_identity(profile.dino)
    embedder_identity(profile.clip)
    if profile.compare_with is not None:
        model_identity(profile.compare_with, "compare_with")
    if isinstance(profile.benchmark, str):
        load_benchmark(profile.benchmark)


def evaluation_changes(profile: Profile, run: Path, name: str) -> list[str]:
    """Why an evaluation has to be done, its shards counted by cause; empty if it is up to date."""
    step = evaluation_step(profile, run, name)
    if not step.missing or "/" not in step.missing[0]:
        return step.changes()
    evaluation = evaluation_of(profile, run, name)
    counts: Counter[str] = Counter()
    for *_, plan in (*evaluation.image_plans(), *evaluation.embedding_plans()):
        # What is said of a shard itself; that its input is about to change is no cause of its own.
        own = [line for line in plan.changes() if " input " not in line and ".inputs." not in line]
        for line in own:
            counts[line.removeprefix(f"{plan.spec.name}.").removeprefix(f"{plan.name}: ")] += 1
    return [f"{name}: {count} shard{'s' if count > 1 else ''} to make: {cause}" for cause, count in counts.items()]
