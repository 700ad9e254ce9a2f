"""From an evaluation's images to embeddings, in shards; and the files of its results."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from safetensors.numpy import save

from dreamcache.dreambooth.cases import Subject
from dreamcache.dreambooth.config import EMBEDDINGS, Variant
from dreamcache.dreambooth.evaluation import Evaluation
from dreamcache.dreambooth.masked import read_images, read_masks, subject_alone
from shards.files import json_line, replace_file
from shards.stage import ShardPlan

if TYPE_CHECKING:
    from dreamcache.dreambooth.embedders import ClipEmbedder, DinoEmbedder
    from dreamcache.dreambooth.generation import Report

ROWS, REAL_ROWS, SUMMARY = "rows.jsonl", "real.jsonl", "summary.json"
BATCH = 32  # images embedded at a time; it changes nothing beyond rounding


def embed_cases(
    evaluation: Evaluation,
    embedders: "Mapping[str, DinoEmbedder | ClipEmbedder]",
    report: "Report | None" = None,
) -> int:
    """Embed the images of all shards that are not up to date; returns the number of shards made.

    Args:
        evaluation: whose images; they must have been sampled and, for masked metrics, their masks made.
        embedders: "dino", "clip" and, where the evaluation names it, "dinov2".
        report: called after each shard with stage, variant, subject, done, total and made (False: it was up to date).

    Raises:
        ValueError: when images have not been sampled yet, or the embedders are not those that the evaluation names.
    """
    for name, embedder in embedders.items():
        if embedder.identity != evaluation.models[name]:
            raise ValueError(
                f"the {name} model is {embedder.identity[:12]}, but the evaluation names {evaluation.models[name][:12]}"
            )
    made = 0
    plans = [(kind, *plan) for kind in evaluation.kinds for plan in evaluation.embedding_plans(kind)]
    plans += [("masked", *plan) for plan in evaluation.masked_plans()]
    for done, (kind, variant, subject, plan) in enumerate(plans, start=1):
        if stale := plan.state() != "done":
            embed_shard(evaluation, kind, variant, subject, plan, embedders)
            made += 1
        if report is not None:
            name = variant or "real"
            report(
                {"stage": kind, "variant": name, "subject": subject.name, "done": done, "total": len(plans)}
                | {"made": stale}
            )
    return made


def embed_shard(
    evaluation: Evaluation,
    kind: str,
    variant: Variant | None,
    subject: Subject,
    plan: ShardPlan,
    embedders: "Mapping[str, DinoEmbedder | ClipEmbedder]",
) -> None:
    """Embed one subject's images of one variant, or its real images for None; of the kind "masked" without background.

    An image whose subject was not found, and an embedding that is not finite, are rejects.

    Raises:
        ValueError: when the images have not been sampled yet.
    """
    from dreamcache.dreambooth.embedders import open_image

    records, images = read_images(evaluation, variant, subject)
    masks = read_masks(evaluation, variant, subject) if kind == "masked" else {}
    device = str(embedders["dino"].model.device)
    with plan.writing({"batch_size": BATCH, "device": device}, len(records)) as out:
        if kind == "masked":
            kept = []
            for record, image in zip(records, images, strict=True):
                mask = masks.get(record["key"])
                try:
                    alone = mask and subject_alone(open_image(image), mask, evaluation.config.background)
                except ValueError as error:
                    raise ValueError(f"{variant or 'real'} image {record['key']}: {error}") from error
                if alone:
                    kept.append((record, alone))
                else:
                    out.reject(record, "subject not found")
            records, images = [record for record, _ in kept], [image for _, image in kept]
        used = {name: embedders[name] for name in EMBEDDINGS.get(kind, EMBEDDINGS["embeddings"])}
        embeddings = {name: one.embed_images(images, BATCH).numpy() for name, one in used.items()}
        if variant == "copy-paste":
            embeddings = {name: np.repeat(rows, len(records), axis=0) for name, rows in embeddings.items()}
        text: dict[str, np.ndarray] = {}
        if variant is not None and kind == "embeddings":
            prompts = sorted({record["prompt"] for record in records})
            clip = cast("ClipEmbedder", embedders["clip"])
            text = dict(zip(prompts, clip.embed_prompts(prompts, BATCH).numpy(), strict=True)) if prompts else {}
        for index, record in enumerate(records):
            tensors = {name: np.ascontiguousarray(rows[index]) for name, rows in embeddings.items()}
            if text:
                tensors["prompt"] = np.ascontiguousarray(text[record["prompt"]])
            if all(np.isfinite(tensor).all() for tensor in tensors.values()):
                out.add(record, {"safetensors": save(tensors)})
            else:
                out.reject(record, "embedding not finite")


def write_results(
    folder: Path, rows: Iterable[Mapping[str, Any]], real_rows: Iterable[Mapping[str, Any]], summary: Mapping[str, Any]
) -> None:
    """Write rows.jsonl, real.jsonl and summary.json into an evaluation's folder, each whole or not at all."""
    contents = {
        ROWS: b"".join(json_line(row) for row in rows),
        REAL_ROWS: b"".join(json_line(row) for row in real_rows),
        SUMMARY: summary_json(summary),
    }
    for name, content in contents.items():
        replace_file(folder / name, content)


def summary_json(summary: Mapping[str, Any]) -> bytes:
    """A summary as its file holds it; NaN is refused with ValueError."""
    return json.dumps(summary, indent=1, allow_nan=False).encode() + b"\n"
