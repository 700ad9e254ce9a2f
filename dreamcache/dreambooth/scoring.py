"""From an evaluation's images to its rows: embeddings in shards, then one row an image, which needs no model."""

import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from safetensors.numpy import load, save

from dreamcache.dreambooth.cases import Subject
from dreamcache.dreambooth.config import PREPROCESSING, Variant
from dreamcache.dreambooth.evaluation import Evaluation
from dreamcache.dreambooth.metrics import image_similarity, pair_similarity, text_similarity
from shards.files import json_line, read_tar_records, sync_folder
from shards.stage import ShardPlan

if TYPE_CHECKING:
    from dreamcache.dreambooth.embedders import ClipEmbedder, DinoEmbedder
    from dreamcache.dreambooth.generation import Report

ROWS, REAL_ROWS, SUMMARY = "rows.jsonl", "real.jsonl", "summary.json"


def embed_cases(
    evaluation: Evaluation,
    dino: "DinoEmbedder",
    clip: "ClipEmbedder",
    batch_size: int = 32,
    report: "Report | None" = None,
) -> int:
    """Embed the images of all shards that are not up to date, sampled and real; returns the number of shards made.

    Raises:
        ValueError: when images have not been sampled yet, or the embedders are not those that the evaluation names.
    """
    for name, embedder in (("dino", dino), ("clip", clip)):
        if embedder.identity != evaluation.models[name]:
            raise ValueError(
                f"the {name} model is {embedder.identity[:12]}, but the evaluation names {evaluation.models[name][:12]}"
            )
    made = 0
    plans = evaluation.embedding_plans()
    for done, (variant, subject, plan) in enumerate(plans, start=1):
        if stale := plan.state() != "done":
            embed_shard(evaluation, variant, subject, dino, clip, batch_size)
            made += 1
        if report is not None:
            name = variant or "real"
            report(
                {"stage": "embeddings", "variant": name, "subject": subject.name, "done": done, "total": len(plans)}
                | {"made": stale}
            )
    return made


def embed_shard(
    evaluation: Evaluation,
    variant: Variant | None,
    subject: Subject,
    dino: "DinoEmbedder",
    clip: "ClipEmbedder",
    batch_size: int = 32,
) -> None:
    """Embed one subject's images of one variant, or its real images for None.

    Raises:
        ValueError: when the images have not been sampled yet.
    """
    images: list[Image.Image | Path]
    if variant is None:
        plan = evaluation.real_plan(subject)
        images = list(subject.images)
        records: list[dict[str, Any]] = [
            {"key": subject.image_key(path), "subject": subject.name} for path in subject.images
        ]
    elif variant == "copy-paste":
        plan = evaluation.embedding_plan(variant, subject)
        images = [subject.reference]
        records = [
            {
                "key": case.key, "subject": case.subject, "prompt_index": case.prompt_index, "position": case.position,
                "prompt": case.prompt, "seed": None, "reference": subject.image_key(subject.reference),
                "reference_masked": None,
            }
            for case in evaluation.cases(subject)
        ]  # fmt: skip
    else:
        plan = evaluation.embedding_plan(variant, subject)
        source = evaluation.image_plan(variant, subject)
        if source.state() != "done":
            raise ValueError(f"{source.path}: images not sampled yet, or by other settings; run generate_cases first")
        parts = [content for _, content in read_tar_records(source.path)]
        images = [Image.open(io.BytesIO(content["png"])) for content in parts]
        records = [json.loads(content["json"]) for content in parts]
    embeddings = {
        "dino": dino.embed_images(images, batch_size).numpy(),
        "clip": clip.embed_images(images, batch_size).numpy(),
    }
    if variant == "copy-paste":
        embeddings = {name: np.repeat(rows, len(records), axis=0) for name, rows in embeddings.items()}
    if variant is not None:
        prompts = sorted({record["prompt"] for record in records})
        text = dict(zip(prompts, clip.embed_prompts(prompts, batch_size).numpy(), strict=True)) if prompts else {}
    with plan.writing({"batch_size": batch_size, "device": str(dino.model.device)}, records_in=len(records)) as out:
        for index, record in enumerate(records):
            tensors = {name: np.ascontiguousarray(rows[index]) for name, rows in embeddings.items()}
            if variant is not None:
                tensors["prompt"] = np.ascontiguousarray(text[record["prompt"]])
            if all(np.isfinite(tensor).all() for tensor in tensors.values()):
                out.add(record, {"safetensors": save(tensors)})
            else:
                out.reject(record, "embedding not finite")


def score_cases(evaluation: Evaluation) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One row an image and one a pair of real images, from the stored embeddings alone.

    A row holds variant, case, subject, class, live, palette_shared (another subject of the benchmark has its palette),
    prompt_index, position, prompt, seed, reference (the key of the image shown to the backbone, None: none),
    reference_masked, references (how many real images it was scored against), dino, clip_i, clip_t; and benchmark,
    digests, protocol, preprocessing and models, which say what the numbers are.

    Raises:
        ValueError: when embeddings are missing or belong to other settings.
    """
    benchmark, config = evaluation.benchmark, evaluation.config
    groups: Counter[str | None] = Counter(
        subject.palette_group for subject in benchmark.subjects if subject.palette_group is not None
    )
    names = {"benchmark": benchmark.name, "digests": benchmark.digests, "preprocessing": PREPROCESSING}
    scored_by = {name: evaluation.models[name] for name in ("dino", "clip")}
    rows: list[dict[str, Any]] = []
    real_rows: list[dict[str, Any]] = []
    for subject in evaluation.subjects:
        about = {
            "subject": subject.name,
            "class": subject.class_word,
            "live": subject.live,
            "palette_shared": groups[subject.palette_group] > 1,
        }
        real = _read_embeddings(evaluation.real_plan(subject))
        keys = [subject.image_key(path) for path in subject.images]
        if missing := [key for key in keys if key not in real]:
            raise ValueError(f"the real image {missing[0]} has no finite embedding; it cannot be scored against")
        matrices = {name: np.stack([real[key][1][name] for key in keys]) for name in ("dino", "clip")}
        pairs = zip(pair_similarity(matrices["dino"]), pair_similarity(matrices["clip"]), strict=True)
        for (i, j, by_dino), (_, _, by_clip) in pairs:
            scores = {"dino": by_dino, "clip_i": by_clip}
            real_rows.append(
                about | {"pair": [keys[i], keys[j]]} | scores | names | {"models": scored_by},
            )
        if config.protocol == "one-reference":
            keys = [subject.image_key(subject.reference)]
        references = {name: np.stack([real[key][1][name] for key in keys]) for name in ("dino", "clip")}
        for variant in config.variants:
            stored = list(_read_embeddings(evaluation.embedding_plan(variant, subject)).values())
            if not stored:
                continue  # all of them rejected: the accounts say so
            dino, clip, prompt = (np.stack([e[name] for _, e in stored]) for name in ("dino", "clip", "prompt"))
            scores_of = {
                "dino": image_similarity(dino, references["dino"]),
                "clip_i": image_similarity(clip, references["clip"]),
                "clip_t": text_similarity(clip, prompt),
            }
            models = dict(scored_by)
            if variant != "copy-paste":
                models |= evaluation.image_plan(variant, subject).spec.models
            for index, (record, _) in enumerate(stored):
                record = dict(record)
                rows.append(
                    {"variant": variant, "case": record.pop("key"), **about, **record, "references": len(keys)}
                    | {name: float(values[index]) for name, values in scores_of.items()}
                    | names
                    | {"protocol": config.protocol, "models": models}
                )
    return rows, real_rows


def write_results(
    folder: Path, rows: Iterable[Mapping[str, Any]], real_rows: Iterable[Mapping[str, Any]], summary: Mapping[str, Any]
) -> None:
    """Write rows.jsonl, real.jsonl and summary.json into an evaluation's folder, each whole or not at all."""
    contents = {
        ROWS: b"".join(json_line(row) for row in rows),
        REAL_ROWS: b"".join(json_line(row) for row in real_rows),
        SUMMARY: json.dumps(summary, indent=1, allow_nan=False).encode() + b"\n",
    }
    for name, content in contents.items():
        temporary = folder / f".{name}.partial"
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / name)
    sync_folder(folder)


def _read_embeddings(plan: ShardPlan) -> dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Records and embeddings of a shard by key; strict about its being up to date."""
    if changes := plan.changes():
        raise ValueError(f"{plan.path}: not embedded yet, or by other settings ({changes[0]}); run embed_cases first")
    return {key: (json.loads(parts["json"]), load(parts["safetensors"])) for key, parts in read_tar_records(plan.path)}
