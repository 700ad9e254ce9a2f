"""What every evaluation goes through in order, where it is not done: masks, images, embeddings, rows, summary."""

from __future__ import annotations

import functools
import json
import logging
import time
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from types import MappingProxyType
from typing import Any

from datagen.masks import MasksConfig
from dreamcache.dreambooth.evaluation import Evaluation
from flows.artifacts import Progress, table_artifact
from flows.evaluation_plans import TRAINED, held_out_file, scored_step
from flows.models import load_pipeline
from flows.profiles import Profile
from flows.score_tables import estimate_cells
from shards.files import replace_file
from shards.markers import checked_marker
from shards.triplets import TripletShards, triplet_paths

log = logging.getLogger(__name__)

# Loads, at the first call alone, the backbone and the adapters, and says on which device they are.
Models = Callable[[], tuple[Any, Any, str]]


def make_evaluation(
    evaluation: Evaluation,
    profile: Profile,
    name: str,
    models: Models,
    outputs: Callable[[Path], list[Path]] = lambda _: [],
    inputs: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Make all of an evaluation that is not up to date, its marker last.

    Each subject and variant is a shard that resumes by itself. `models` is called where images have to be sampled, and
    `outputs`, with the evaluation's folder, for files to be marked beside rows and summary; `inputs` is what they are
    made from.
    """
    from dreamcache.dreambooth.rows import score_cases
    from dreamcache.dreambooth.scoring import write_results
    from dreamcache.dreambooth.summary import calibrate, summarize

    started = time.monotonic()
    make_references(evaluation, profile, name)
    make_scored_shards(evaluation, profile, name, models)
    step = scored_step(evaluation, name, inputs)
    step.reopen()
    rows, real_rows = score_cases(evaluation)
    _tell_of_lost(evaluation, name, {row["variant"] for row in rows})
    summary = summarize(rows, real_rows) if evaluation.config.variants else calibrate(real_rows)
    write_results(step.folder, rows, real_rows, summary)
    files = [step.folder / file for file in ("rows.jsonl", "real.jsonl", "summary.json")] + outputs(step.folder)
    took = round(time.monotonic() - started, 1)
    step.finish(files, {"seconds": took, "seconds_by_part": _seconds_by_part(evaluation, name)})
    _show(name, summary)


def _tell_of_lost(evaluation: Evaluation, name: str, scored: Set[str]) -> None:
    """Warn of kinds of images that were all rejected, and raise ValueError where no others are left."""
    for variant in evaluation.config.variants:
        if variant not in scored:
            said = f"{name}: all images of {variant} were rejected, why the .rejects.jsonl in {evaluation.folder} say"
            if not scored:
                raise ValueError(said)
            log.warning("%s", said)


def make_references(evaluation: Evaluation, profile: Profile, name: str) -> None:
    """Make the masks of real images that have none beside them: any subject's may be a reference of others' images."""
    _make_masks(evaluation, profile.dataset.masks, name, real=True)


def make_scored_shards(evaluation: Evaluation, profile: Profile, name: str, models: Models) -> None:
    """Make an evaluation's images, their masks, attention and embeddings, each model loaded once."""
    if any(plan.changes() for *_, plan in evaluation.image_plans()):
        from dreamcache.dreambooth.generation import generate_cases

        backbone, adapters, device = models()
        log.info("%s: sampling %d subjects on %s", name, len(evaluation.subjects), device)
        with Progress(f"{name} images", len(evaluation.image_plans()), "shards") as progress:
            report = _reporter(progress)
            generate_cases(evaluation, backbone, adapters, report=report, ip_adapter=profile.ip_adapter)
    _make_masks(evaluation, profile.dataset.masks, name, real=False)
    _attend(evaluation, name, models)
    _embed(evaluation, profile, name)


def _seconds_by_part(evaluation: Evaluation, name: str) -> dict[str, float]:
    """What the shards took, loading of models aside, whoever made them; those of real images are TRAINED's."""
    scores = [plan for *_, plan in evaluation.mask_plans(True) + evaluation.mask_plans(False)]
    parts = {
        "images": [plan for *_, plan in evaluation.image_plans()],
        "attention": [plan for *_, plan in evaluation.attention_plans()],
        "scores": [
            plan
            for plan in scores + evaluation.score_plans()
            if name == TRAINED or not plan.spec.name.endswith("/real")
        ],
    }
    return {
        part: round(sum(checked_marker(plan.path).execution.get("seconds", 0.0) for plan in plans), 1)
        for part, plans in parts.items()
        if plans
    }


def _make_masks(evaluation: Evaluation, config: MasksConfig, name: str, real: bool) -> None:
    """Run the dataset's mask stage on the benchmark's real images, or on those that are scored."""
    waiting = [(v, s) for v, s, plan in evaluation.mask_plans(real) if plan.state() != "done"]
    if not waiting:
        return
    from datagen import masks
    from dreamcache.dreambooth.masked import write_pictures

    started = time.monotonic()
    boxes, cutter = masks.load_engines(config)
    log.info("masks: models loaded in %.0f s", time.monotonic() - started)
    execution = config.execution.model_dump()
    with Progress(f"{name} masks", len(waiting), "shards") as progress:
        for done, (variant, subject) in enumerate(waiting, start=1):
            if evaluation.picture_plan(variant, subject).state() != "done":
                write_pictures(evaluation, variant, subject)
            plan = evaluation.mask_plan(variant, subject)
            masks.run(plan, config, boxes, cutter, execution, lambda done, total: None)
            progress.at(done, f"{variant or 'real'} {subject.name}")


def _attend(evaluation: Evaluation, name: str, models: Models) -> None:
    """Where a few images look in their references, from the subjects that the masks say."""
    plans = evaluation.attention_plans()
    if any(plan.changes() for _, plan in plans):
        from dreamcache.dreambooth.attention import attend_cases

        backbone, adapters, _ = models()
        with Progress(f"{name} attention", len(plans), "pictures") as progress:
            attend_cases(evaluation, backbone, adapters, lambda done, total: progress.at(done))


def _embed(evaluation: Evaluation, profile: Profile, name: str) -> None:
    plans = evaluation.score_plans()
    if not any(plan.changes() for plan in plans):
        return
    import torch

    from dreamcache.dreambooth.embedders import load_clip, load_dino, load_dinov2
    from dreamcache.dreambooth.scoring import embed_cases

    device, started = "cuda" if torch.cuda.is_available() else "cpu", time.monotonic()
    embedders: dict[str, Any] = {"dino": load_dino(profile.dino, device), "clip": load_clip(profile.clip, device)}
    if profile.dinov2 is not None:
        embedders["dinov2"] = load_dinov2(profile.dinov2, device)
    log.info("embeddings: models loaded in %.0f s", time.monotonic() - started)
    with Progress(f"{name} embeddings", len(plans), "shards") as progress:
        embed_cases(evaluation, embedders, report=_reporter(progress))


def adapter_models(profile: Profile, adapters: str) -> Models:
    """The backbone with adapters from a folder, the Hub or the authors' released file."""

    @functools.cache
    def load() -> tuple[Any, Any, str]:
        started = time.monotonic()
        pipeline = load_pipeline(profile, adapters)
        log.info("images: models loaded in %.0f s", time.monotonic() - started)
        return pipeline.backbone, pipeline.adapters, str(pipeline.backbone.device)

    return load


def write_held_out_loss(profile: Profile, run: Path, models: Models) -> Path:
    """Write the compared adapters' loss on the held-out triplets, which training logs of the run's own adapters."""
    from dreamcache.validation import held_out_triplets, validation_loss

    config, path = profile.training, held_out_file(run)
    triplets = held_out_triplets(TripletShards(triplet_paths(run)), config.held_out, config.validation_triplets)
    backbone, adapters, _ = models()
    replace_file(path, json.dumps(validation_loss(backbone, adapters, triplets, config.loss_weights)).encode())
    return path


def _reporter(progress: Progress) -> Callable[[dict[str, Any]], None]:
    return lambda row: progress.at(row["done"], f"{row['variant']} {row['subject']}")


def _show(name: str, summary: dict[str, Any]) -> None:
    """The scores as log lines and as a table in Prefect's UI."""
    parts = {variant: kinds["overall"] for variant, kinds in summary.get("variants", {}).items()}
    rows = [{"images": label, **estimate_cells(estimates)} for label, estimates in parts.items()]
    for row in rows:
        log.info("%s: %s", name, ", ".join(f"{column} {cell}" for column, cell in row.items()))
    if rows:
        table_artifact(f"{name}-scores", f"Scores of {name}, with 95% intervals", rows)
