"""The report: one HTML file, pictures inside, of what a run made and how good it is."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from datagen.dataset import STAGES
from flows.pictures import data_uri, with_mask
from flows.plans import report_digest
from flows.profiles import Profile, changed_settings
from flows.report_ablations import ablations
from flows.report_attention import attention
from flows.report_comparison import comparison
from flows.report_costs import costs
from flows.report_dataset import reject_groups, run_markers, stage_rows
from flows.report_pictures import extremes, gallery
from flows.report_scores import scores, sweep
from flows.report_training import training
from flows.settings import setting_text
from shards.files import replace_file
from shards.markers import Marker
from shards.triplets import Triplet, TripletShards, triplet_paths

TRIPLETS_SHOWN = 12


def write_report(profile: Profile, run: Path) -> Path:
    """Write `RUN/report.html` from what lies in a run folder, leaving out what is not there yet; returns its path.

    Raises FileNotFoundError where there is not even a dataset.
    """
    paths = triplet_paths(run)
    digest = report_digest(profile, run)
    markers = run_markers(run)
    trained = training(profile, run)
    scored = scores(profile, run)
    content = {
        "digest": digest,
        "title": f"DreamCache: {run.name}",
        "profile": profile.name,
        "run": str(run),
        "summary": _summary(profile),
        "figures": _figures(markers, trained, scored),
        "stages": stage_rows(markers),
        "rejects": reject_groups(run, markers),
        "triplets": [_triplet(triplet) for triplet in TripletShards(paths).spread(TRIPLETS_SHOWN)],
        "training": trained,
        "gallery": gallery(profile, run),
        "attention": attention(profile, run),
        "scores": scored,
        "sweep": sweep(profile, run),
        "extremes": extremes(profile, run),
        "comparison": comparison(profile, run),
        "ablations": ablations(run),
        "costs": costs(run, markers),
        "command": _command("run", profile, run),
        "dataset_command": _command("build-dataset", profile, Path(f"{run}-again")),
        "models": _models(markers, run),
        "configuration": json.dumps(profile.model_dump(mode="json"), indent=1),
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    path = run / "report.html"
    replace_file(path, environment.get_template("report.html").render(content).encode())
    return path


def _command(name: str, profile: Profile, run: Path) -> str:
    words = ["dreamcache", name, "--profile", profile.name, "--run", str(run)]
    for name, value in changed_settings(profile).items():
        words += ["--set", setting_text(name, value)]
    return shlex.join(words)


def _summary(profile: Profile) -> str:
    sampling = profile.evaluation.sampling
    scales = f"text {sampling.guidance_scale:g}, reference {sampling.image_guidance_scale:g}"
    if sampling.guidance == "joint":
        scales = f"scale {sampling.guidance_scale:g}"
    return (
        f"Images sampled with {sampling.guidance} guidance, {scales}, {sampling.steps} steps; scored by the protocol "
        f"{profile.evaluation.protocol}."
    )


def _figures(
    markers: dict[str, list[Marker]], trained: dict[str, Any] | None, scored: dict[str, Any] | None
) -> list[dict[str, str]]:
    figures = [
        {"value": f"{sum(m.records_out for m in markers[stage]):,}", "label": label}
        for stage, label in (("dedup", "captions kept"), ("images", "images"), ("triplets", "triplets"))
        if stage in markers
    ]
    if trained:
        figures.append({"value": f"{trained['steps']:,}", "label": "training steps"})
    if scored:
        figures += scored["headline"]
    return figures


def _triplet(triplet: Triplet) -> dict[str, str]:
    from dreamcache.reference import reference_image

    image, mask = triplet.image, triplet.mask
    return {
        "target": data_uri(image),
        "mask": data_uri(with_mask(image, mask)),
        "reference": data_uri(reference_image(image, mask, image.width)),
        "caption": triplet.caption,
        "key": triplet.key,
        # Imported ones may have neither.
        "subject": str(triplet.record.get("subject", "")),
        "seed": str(triplet.record.get("seed", "")),
    }


def _models(markers: dict[str, list[Marker]], run: Path) -> Sequence[tuple[str, str]]:
    models = {
        f"{stage}: {role}": str(identity)
        for stage in STAGES
        for marker in markers.get(stage, [])[:1]
        for role, identity in marker.recipe["models"].items()
    }
    for name in ("training", "evaluation", "evaluation-compared"):
        path = run / name / "done.json"
        if path.is_file():
            recipe = json.loads(path.read_bytes())["recipe"]
            models |= {f"{name}: {role}": identity for role, identity in recipe["models"].items()}
    return list(models.items())
