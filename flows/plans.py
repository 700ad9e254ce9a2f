"""What a run's steps are made from, and so whether they are up to date; no model is loaded here, and no Prefect."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datagen.dataset import STAGES, Dataset, explained
from datagen.identity import model_identity
from datagen.licences import model_terms
from dreamcache.dreambooth.cases import load_benchmark
from flows.evaluation_plans import (
    EVALUATION_VERSION,
    benchmark_step,
    embedder_models,
    evaluation_of,
    evaluations,
    held_out_inputs,
    ip_adapter_model,
    scored_step,
    shard_changes,
)
from flows.profiles import DrawnBenchmark, Profile, load_profile, with_dataset_of
from flows.steps import Step, recipe
from shards.markers import Marker, checked_marker, read_marker
from shards.run_folder import require_buildable
from shards.statistics import stage_accounts
from shards.store import bring, store_of, url_of
from shards.transfer import bring_step, is_sent
from shards.triplets import triplet_paths, unfinished_part

DESCRIPTION_VERSION = 1
TRAINING_VERSION = 1
REPORT_VERSION = 7


def training_step(profile: Profile, run: Path) -> Step:
    """Training: its settings, the backbone, and the triplet shards."""
    models = {"backbone": model_identity(profile.backbone, "backbone")}
    # Pictures taken on the way change nothing of what is learned.
    settings = {name: value for name, value in profile.training.content().items() if name != "samples_every"}

    def waiting(missing: str) -> Step:
        return Step("training", run / "training", recipe(TRAINING_VERSION, settings, models, {}), (missing,))

    built = with_dataset_of(run, profile).dataset
    try:
        part, paths = unfinished_part(run, built.shards, built.target_triplets), triplet_paths(run)
    except FileNotFoundError:
        return waiting("the dataset")
    if part is not None:
        return waiting(f"the dataset ({part})")
    markers = {path.relative_to(run).as_posix(): checked_marker(path) for path in paths}
    if outdated := [name for name, marker in markers.items() if _is_outdated(marker, run)]:
        return waiting(f"the dataset ({outdated[0]} is older than what it was made from)")
    inputs = {name: marker.shard.sha256 for name, marker in markers.items()}
    made_from = recipe(TRAINING_VERSION, settings, models, inputs)
    free = frozenset({"accumulation", "checkpoint_every"})
    return Step("training", run / "training", made_from, extendable=frozenset({"steps"}), free=free)


def bring_for_training(profile: Profile, run: Path) -> None:
    """Where a run is on an object store: have its triplets here, and what was trained on them by this profile."""
    if store_of(run) is not None:
        with contextlib.suppress(FileNotFoundError):  # told by `check_inputs`
            bring(triplet_paths(run))
            step = training_step(profile, run)
            if step.changes():
                bring_step(step.folder, step.recipe)


def _is_outdated(marker: Marker, run: Path) -> bool:
    """Whether a shard's inputs were made again since, by a build of the dataset that has not come to its end."""
    inputs = ((read_marker(run / name), sha256) for name, sha256 in marker.recipe["inputs"].items())
    return any(now is not None and now.shard.sha256 != sha256 for now, sha256 in inputs)


def description_step(run: Path, profile: Profile | None = None) -> Step:
    """The statistics, index and card beside a run's triplets: all markers' checksums, and the terms of the models."""
    inputs: dict[str, Any] = {}
    missing: tuple[str, ...] = ()
    try:
        paths = triplet_paths(run)
        for stage in STAGES:
            found = _markers(run, stage, paths)
            inputs |= {f"{stage}/{name}": f"{marker.shard.sha256} {marker.rejects.sha256}" for name, marker in found}
    except FileNotFoundError:
        missing = ("the dataset",)
    terms = {} if profile is None else _model_terms(profile)
    return Step("dataset card", run / "triplets", recipe(DESCRIPTION_VERSION, {}, terms, inputs), missing)


def dataset_accounts(run: Path, paths: Sequence[Path]) -> dict[str, Any]:
    """`stage_accounts` of triplet shards and of the shards that they were made from."""
    return stage_accounts({stage: (marker for _, marker in _markers(run, stage, paths)) for stage in STAGES})


def _markers(run: Path, stage: str, paths: Sequence[Path]) -> Iterator[tuple[str, Marker]]:
    """The markers of a stage's shards that triplet shards were made from, each with its number."""
    for path in paths:
        if (marker := read_marker(run / stage / path.name)) is not None:
            yield path.stem, marker


def _model_terms(profile: Profile) -> dict[str, str]:
    """Model identity -> terms of use, of the models that make a profile's dataset."""
    shipped = {identity for identity, _ in _identified(load_profile("miniature"))}
    terms = {}
    for identity, location in _identified(profile):
        text = "Apache-2.0, trained by this project" if identity in shipped else model_terms(location)
        if text is not None:
            terms[identity] = text
    return terms


def _identified(profile: Profile) -> Iterator[tuple[str, str]]:
    """The identity and the location of each model that makes a profile's dataset and is there."""
    for config in (profile.dataset.captions, profile.dataset.images, profile.dataset.masks):
        for role, location in config.locations().items():
            with contextlib.suppress(OSError):  # an import of pairs needs but some of the models
                if role != "taxonomy":
                    yield model_identity(location, role), location


def evaluation_step(profile: Profile, run: Path, name: str) -> Step:
    """An evaluation as a whole: its rows and its summary, made from shards that have markers of their own."""
    missing = []
    if training_step(profile, run).changes():
        missing.append("the training")
    if isinstance(profile.benchmark, DrawnBenchmark) and benchmark_step(profile.benchmark, run).changes():
        missing.append("the benchmark")
    if missing:
        return Step(name, run / name, recipe(EVALUATION_VERSION, {}, {}, {}), tuple(missing))
    return scored_step(evaluation_of(profile, run, name), name, held_out_inputs(profile, run, name))


def report_digest(profile: Profile, run: Path) -> str:
    """The SHA-256 over all that a report shows: the configuration and every marker in the run folder."""
    total = hashlib.sha256(f"{REPORT_VERSION} {run.resolve().name} {profile.model_dump_json()}".encode())
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
    that is not there, ValueError where a build would replace an import or a merge, and what `check_models` does.
    """
    if command in ("run", "evaluate-adapters"):
        check_models(profile)
    lines: list[str] = []
    if command in ("run", "build-dataset"):
        require_buildable(run)
        lines += explained(Dataset(profile.dataset, run).remaining())
    undescribed = [] if lines or command not in ("run", "build-dataset") else description_step(run, profile).changes()
    if command in ("run", "train-adapters"):
        bring_for_training(profile, run)
        lines += ["training: after the dataset"] if lines else training_step(profile, run).changes()
    if command in ("run", "evaluate-adapters"):
        untrained = bool(lines)
        for name in evaluations(profile):
            lines += [f"{name}: after the training"] if untrained else evaluation_changes(profile, run, name)
    lines += undescribed
    folder = {"build-dataset": "triplets", "train-adapters": "training"}.get(command)
    if not lines and folder is not None and not is_sent(run, folder):
        lines.append(f"{folder}: to be copied to {url_of(run / folder)}")
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
    """Raise what only a late step would: FileNotFoundError for a model or a benchmark, ValueError for a setting."""
    model_identity(profile.backbone, "backbone")
    embedder_models(profile)
    ip_adapter_model(profile, profile.evaluation)
    if profile.sweep.image_scales:
        profile.evaluation.sampling.require_image_scale("sweep.image_scales")
    if profile.compare_with is not None:
        model_identity(profile.compare_with, "compare_with")
    if isinstance(profile.benchmark, str):
        load_benchmark(profile.benchmark)


def evaluation_changes(profile: Profile, run: Path, name: str) -> list[str]:
    """Why an evaluation has to be done, its shards counted by cause; empty if it is up to date."""
    step = evaluation_step(profile, run, name)
    if not step.missing or "/" not in step.missing[0]:
        return step.changes()
    return shard_changes(evaluation_of(profile, run, name), name)
