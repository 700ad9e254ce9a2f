"""Profiles: complete sets of models, the engines that run them, and sizes. Two ship, `miniature` and `full`."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from datagen.captions import CaptionsConfig, ServerConfig
from datagen.config import Execution
from datagen.dataset import DatasetConfig
from datagen.dedup import DedupConfig
from datagen.gates import GatesConfig
from datagen.images import ImagesConfig
from datagen.masks import MasksConfig
from dreamcache.configs import SamplingConfig, TrainingConfig
from dreamcache.dreambooth.config import EvaluationConfig, SweepConfig
from flows.settings import nearest_of, with_settings
from shards.files import replace_file
from shards.store import place_of


class DrawnBenchmark(BaseModel):
    """The size of the miniature's benchmark, which is drawn by `python -m miniature.dreambooth`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    subjects: int = Field(30, ge=2)
    images: int = Field(5, ge=2, description="drawn images a subject")


class WorkersConfig(BaseModel):
    """Where the blocks of a dataset and of its evaluation are made: here, or as runs of deployments on workers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    deployment: str | None = Field(
        None, pattern=".+/.+", description="a deployment of build-block, such as build-block/gpu; else in one process"
    )
    evaluation: str | None = Field(
        None, pattern=".+/.+", description="a deployment of evaluate-block, such as evaluate-block/gpu; else here"
    )
    subjects_per_block: int = Field(4, ge=1, description="of the benchmark, in a block of an evaluation")
    blocks_in_flight: int = Field(4, ge=1, le=200, description="as many as there are workers")
    retries: int = Field(3, ge=0, description="of a block whose worker died or failed for a reason that may pass")


class Profile(BaseModel):
    """All that a run is made with: how the dataset is built, adapters trained and measured, and with which models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dataset: DatasetConfig
    workers: WorkersConfig = WorkersConfig()
    backbone: str = Field(description="the Stable Diffusion that adapters are for; a local folder or a Hub name")
    training: TrainingConfig
    evaluation: EvaluationConfig
    benchmark: str | DrawnBenchmark = Field(description="DreamBooth's folder, or how large a miniature one is drawn")
    dino: str = Field(description="the ViT of the DINO scores")
    clip: str = Field(description="the CLIP of CLIP-I and CLIP-T")
    dinov2: str | None = Field(None, description="a DINOv2 for one more column of scores")
    ip_adapter: str | None = Field(None, description="an IP-Adapter for the backbone, for the variant ip-adapter")
    sweep: SweepConfig = SweepConfig()
    compare_with: str | None = Field(None, description="a folder of adapters to evaluate beside the trained ones")


def miniature_checkpoints() -> Path:
    """The folder of the miniature's checkpoints, found without importing the package that drew and trained them.

    Raises FileNotFoundError where the package is not installed.
    """
    found = importlib.util.find_spec("miniature")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError("the package miniature with its checkpoints is not installed: pip install -e .")
    return Path(next(iter(found.submodule_search_locations))) / "checkpoints"


def _miniature() -> Profile:
    checkpoints = miniature_checkpoints()
    return Profile(
        name="miniature",
        dataset=DatasetConfig(
            captions_per_shard=48,
            shards=5,
            shards_per_block=5,
            captions=CaptionsConfig(model=str(checkpoints / "llama"), taxonomy=str(checkpoints / "taxonomy.json")),
            images=ImagesConfig(
                model=str(checkpoints / "stable-diffusion"), steps=20, execution=Execution(batch_size=16)
            ),
            masks=MasksConfig(
                box_model=str(checkpoints / "detector"),
                mask_model=str(checkpoints / "sam"),
                min_part=0.05,  # crumbs of what the small SAM cuts out
                execution=Execution(batch_size=16),
            ),
        ),
        backbone=str(checkpoints / "stable-diffusion"),
        # Adapters of 0.2M parameters on a small U-Net: larger steps than the paper's, and many fewer of them. They are
        # enough since the loss is weighted towards what tells subjects apart: their looks, still deep in noise.
        training=TrainingConfig(
            steps=160,
            batch_size=16,
            learning_rate=3e-3,
            min_snr_gamma=0.3,
            subject_weight=10.0,
            ema_decay=0.98,
            warmup_steps=20,
            held_out=0.2,
            validation_every=50,
            validation_triplets=40,
            start="self-attention",
            reference_variants=4,  # encoding a new one at each visit is a fifth of a step on a CPU
            checkpoint_every=40,
        ),
        # Scales chosen on other drawn subjects than the benchmark's.
        evaluation=EvaluationConfig(
            images_per_prompt=1,
            prompts=2,
            masked_metrics=True,
            sampling=SamplingConfig(steps=15, guidance_scale=5.0, image_guidance_scale=4.0),
        ),
        benchmark=DrawnBenchmark(subjects=24, images=4),
        dino=str(checkpoints / "dino"),
        clip=str(checkpoints / "clip"),
        compare_with=str(checkpoints / "adapters"),
    )


def _full() -> Profile:
    return Profile(
        name="full",
        dataset=DatasetConfig(
            target_triplets=400_000,
            captions=CaptionsConfig(
                model="meta-llama/Llama-3.2-3B-Instruct",
                taxonomy=str(files("datagen") / "taxonomy.json"),
                engine="vllm",
                reply="schema",
                captions_per_request=4,
                instruction=CAPTION_INSTRUCTION,
                dtype="bfloat16",
                execution=Execution(batch_size=128),
                # Llama's own 131,072 would take most of a small GPU for one request's memory.
                server=ServerConfig(arguments=("--max-model-len", "4096")),
            ),
            # Shares of the captions asked for: 370 classes and 102 places are drawn evenly, so these bind where a model
            # writes of one thing whatever it is asked for.
            dedup=DedupConfig(
                max_class_share=0.01, max_class_and_place_share=0.0005, min_words=5, blocked_words=_blocked_words()
            ),
            images=ImagesConfig(
                model="stabilityai/stable-diffusion-xl-base-1.0",
                vae="madebyollin/sdxl-vae-fp16-fix",  # SDXL's own gives NaN in float16
                stored_size=512,
                dtype="float16",
            ),
            masks=MasksConfig(
                box_engine="groundingdino-py",
                mask_engine="segment-anything",
                box_model="ShilongLiu/GroundingDINO",
                text_model="google-bert/bert-base-uncased",
                mask_model="HCMUE-Research/SAM-vit-h",
                dtype="bfloat16",
            ),
            gates=GatesConfig(max_subjects=1),
        ),
        backbone="stable-diffusion-v1-5/stable-diffusion-v1-5",
        training=TrainingConfig(dtype="bfloat16", accumulation=8),
        evaluation=EvaluationConfig(masked_metrics=True, dtype="bfloat16"),
        benchmark="dreambooth/dataset",
        dino="facebook/dino-vits16",
        clip="openai/clip-vit-base-patch32",
    )


CAPTION_INSTRUCTION = (
    "You write captions for photographs. For each subject, place and detail that you are given, write one vivid "
    "sentence of at most 30 words about a single such subject at that place, in which the noun stands. {format} "
    "Nothing else.\n"
)


def _blocked_words() -> tuple[str, ...]:
    return tuple(json.loads((files("datagen") / "blocked_words.json").read_text(encoding="utf-8")))


PROFILES: dict[str, Callable[[], Profile]] = {"miniature": _miniature, "full": _full}


def load_profile(name: str, settings: Mapping[str, Any] | None = None) -> Profile:
    """A profile by name with dotted settings changed, such as `{"images.guidance_scale": 5.0}`.

    Settings of the dataset go by their stage's name alone. Raises ValueError, in one line with the nearest right
    names, for a profile or a setting that does not exist, or a value that does not fit.
    """
    if name not in PROFILES:
        raise ValueError(f"there is no profile {name}{nearest_of(name, PROFILES)}")
    parts = set(DatasetConfig.model_fields)
    full = {
        (f"dataset.{key}" if key.partition(".")[0] in parts else key): value for key, value in (settings or {}).items()
    }
    try:
        return with_settings(PROFILES[name](), full)
    except ValueError as error:
        raise ValueError(str(error).replace("dataset.", "")) from None


def changed_settings(profile: Profile) -> dict[str, Any]:
    """The dotted settings in which a profile differs from the one that ships under its name."""
    now, shipped = profile.model_dump(mode="json"), PROFILES[profile.name]().model_dump(mode="json")

    def differences(new: dict[str, Any], old: dict[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in new.items():
            before = old.get(name)
            if isinstance(value, dict) and isinstance(before, dict):
                found |= differences(value, before, f"{prefix}{name}.")
            elif value != before:
                found[f"{prefix}{name}".removeprefix("dataset.")] = value
        return found

    return differences(now, shipped, "")


def recorded_profile(run: Path) -> Profile | None:
    """The configuration that a run folder records, or None where there is none (an import, a merged dataset).

    Raises ValueError if it cannot be read.
    """
    path = run / "config.json"
    if not path.is_file():
        return None
    try:
        return Profile.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not a configuration of this version: start the run again to write it") from error


def with_dataset_of(run: Path, profile: Profile) -> Profile:
    """The profile with the dataset part that a run folder records, since its dataset was built by that."""
    with contextlib.suppress(ValueError):
        if (recorded := recorded_profile(run)) is not None:
            return profile.model_copy(update={"dataset": recorded.dataset})
    return profile


def check_profile(run: Path, profile: Profile) -> None:
    """Raise ValueError where a run folder records another profile, by which all that is there would be made anew."""
    name = profile.name
    with contextlib.suppress(ValueError):  # what cannot be read is written anew
        if (recorded := recorded_profile(run)) is not None:
            name = recorded.name
    if name != profile.name:
        raise ValueError(f"{place_of(run)} is a run of the profile {name}: give --profile {name}, or another --run")


def record_configuration(run: Path, profile: Profile, builds: bool = False) -> None:
    """Keep the complete configuration of the latest start in the run folder, `config.json`.

    What the dataset there was built by stays, but where this start `builds` it. ValueError as `check_profile`.
    """
    check_profile(run, profile)
    kept = profile if builds else with_dataset_of(run, profile)
    content = json.dumps(kept.model_dump(mode="json"), indent=1).encode() + b"\n"
    path = run / "config.json"
    if not path.is_file() or path.read_bytes() != content:
        replace_file(path, content)
