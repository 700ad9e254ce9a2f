"""Training data: row n of an endless sequence, a pure function of the seed and n (paper Section 3.3)."""

import functools
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import Dataset

from dreamcache.configs import TrainingConfig
from dreamcache.held_out import is_trained_on, key_hash
from dreamcache.processes import process_count, process_rank, wait_for_all
from dreamcache.reference import augment_reference, reference_image, to_tensor
from dreamcache.validation import BATCH, target_mask, target_tensor
from shards.files import replace_file
from shards.markers import checked_marker
from shards.memory import in_batches
from shards.order import TrainingOrder
from shards.triplets import TripletShards

if TYPE_CHECKING:
    from dreamcache.backbone import Backbone
    from shards.triplets import Triplet

# Raised by hand when the stored tensors would come out differently from the same settings.
STORED_VERSION = 2


class TrainingData(Dataset[dict[str, Any]]):
    """Row n of training: which triplet, noise, timesteps and augmentation depend on the seed and n alone.

    A row holds `timestep`, `noise` and `reference_noise` (C, h, w) float32, `drop_caption`, `mask` (h, w) float32, how
    much of each latent the subject covers, and either what was stored (`latents`, `text`, `reference_latents`) or what
    is still to be encoded (`target`, `caption`, `reference`; images are (3, H, W) in [-1, 1]). ValueError if nothing is
    left to train on.
    """

    def __init__(
        self, shards: TripletShards, config: TrainingConfig, backbone: "Backbone", stored: Sequence[Path] | None
    ) -> None:
        self.shards, self.config, self.stored = shards, config, stored
        self.image_size, self.latent_shape = backbone.image_size, backbone.latent_shape
        self.timesteps = backbone.timesteps
        self.kept = [
            [i for i, key in enumerate(shards.keys(shard)) if is_trained_on(key, config.held_out, config.share)]
            for shard in range(len(shards.counts))
        ]
        self.order = TrainingOrder([len(indices) for indices in self.kept], config.seed)
        self._files: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Mapped files do not travel to other processes; a worker opens its own.
        return {**self.__dict__, "_files": {}}

    def __len__(self) -> int:
        """Rows in the whole training."""
        return self.config.steps * self.config.batch_size

    def __getitem__(self, number: int) -> dict[str, Any]:
        epoch, position = self.order.locate(number)
        shard, place = self.order.at(epoch, position)
        index = self.kept[shard][place]
        generator = np.random.default_rng((self.config.seed, epoch, position))
        row: dict[str, Any] = {
            "timestep": int(generator.integers(self.timesteps)),
            "drop_caption": bool(generator.random() < self.config.caption_dropout),
            "noise": torch.from_numpy(generator.standard_normal(self.latent_shape, dtype=np.float32)),
            "reference_noise": torch.from_numpy(generator.standard_normal(self.latent_shape, dtype=np.float32)),
        }
        if self.config.adapters.cache_prompt:
            row["subject"] = str(self.shards.read(shard, index).record.get("subject", ""))
        variants = self.config.reference_variants
        if self.stored is not None:
            file = self._file(shard)
            for name in ("latents", "text", "mask"):
                row[name] = file.get_slice(name)[index]
            if variants:
                variant = (key_hash(self.shards.keys(shard)[index]) + epoch) % variants
                row["reference_latents"] = file.get_slice(f"references.{variant}")[index]
                return row
        triplet = self.shards.read(shard, index)
        row["reference"] = to_tensor(_reference(triplet, self.image_size, self.config, generator))
        if self.stored is None:
            row["target"], row["caption"] = target_tensor(triplet.image, self.image_size), triplet.caption
            row["mask"] = target_mask(triplet.mask, self.latent_shape[-1])
        return row

    def _file(self, shard: int) -> Any:
        if shard not in self._files:
            assert self.stored is not None
            self._files[shard] = safe_open(self.stored[shard], framework="pt")
        return self._files[shard]


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows of `TrainingData` as one batch: tensors stacked, numbers as a tensor, captions as a list."""
    batch: dict[str, Any] = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if isinstance(first, Tensor):
            batch[name] = torch.stack(values)
        else:
            batch[name] = values if isinstance(first, str) else torch.tensor(values)
    return batch


@torch.no_grad()
def store_latents(
    backbone: "Backbone",
    shards: TripletShards,
    config: TrainingConfig,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> list[Path]:
    """Encode every shard's targets, captions and reference variants into a safetensors file in `latents/` beside it.

    A file's name holds a digest of all that it depends on, so what is there already serves every training, and files
    made of other triplets, with another backbone or other settings are never read. Several processes share out the
    shards, also those of several trainings. Returns the files, one a shard. ValueError if nothing can be written beside
    the shards.
    """
    files = _latent_files(backbone, shards, config)
    execution = {"batch_size": BATCH}
    missing = [shard for shard in range(process_rank(), len(files), process_count()) if not _is_whole(files[shard])]
    # Each training in an order of its own: of several at once each encodes what the others have not come to.
    random.SystemRandom().shuffle(missing)
    for shard in missing:
        if _is_whole(files[shard]):
            continue
        try:
            files[shard].parent.mkdir(exist_ok=True)
        except OSError as error:
            raise ValueError(f"{files[shard].parent} cannot be made ({error}): set store_latents to false") from error
        encoded = sum(number for file, number in zip(files, shards.counts, strict=True) if file.exists())
        parts: dict[str, list[Tensor]] = {}
        encode = functools.partial(_encode, backbone, shards, config, shard)
        for batch, tensors in in_batches(range(shards.counts[shard]), execution, encode):
            for name, tensor in tensors.items():
                parts.setdefault(name, []).append(tensor.cpu())
            if report is not None:
                report({"encoded": encoded + batch[-1] + 1, "triplets": len(shards)})
        replace_file(files[shard], save({name: torch.cat(tensors).contiguous() for name, tensors in parts.items()}))
    wait_for_all()
    return files


def _is_whole(file: Path) -> bool:
    """Whether a file of stored latents is there and as long as its header says."""
    try:
        with safe_open(file, framework="pt"):
            return True
    except (FileNotFoundError, SafetensorError):
        return False


def _latent_files(backbone: "Backbone", shards: TripletShards, config: TrainingConfig) -> list[Path]:
    """Where each shard's latents are stored, or are to be."""
    files = []
    for path in shards.paths:
        recipe = {
            "version": STORED_VERSION,
            "backbone": backbone.identity,
            "image_size": backbone.image_size,
            "dtype": str(backbone.dtype),
            "triplets": checked_marker(path).shard.sha256,
            "variants": config.reference_variants,
            "augmentation": [config.augment_references, config.seed] if config.reference_variants else None,
        }
        if config.reference_variants and config.references != "subject":
            recipe["references"] = config.references
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
        files.append(path.parent / "latents" / f"{path.stem}-{digest[:16]}.safetensors")
    return files


def _encode(
    backbone: "Backbone", shards: TripletShards, config: TrainingConfig, shard: int, indices: Sequence[int]
) -> dict[str, Tensor]:
    size, triplets = backbone.image_size, [shards.read(shard, index) for index in indices]
    images = torch.stack([target_tensor(triplet.image, size) for triplet in triplets])
    encoded = {
        "latents": backbone.encode_images(images),
        "text": backbone.encode_prompts([triplet.caption for triplet in triplets]),
        "mask": torch.stack([target_mask(triplet.mask, backbone.latent_shape[-1]) for triplet in triplets]),
    }
    for variant in range(config.reference_variants):
        references = [
            _reference(triplet, size, config, np.random.default_rng((config.seed, variant, key_hash(triplet.key))))
            for triplet in triplets
        ]
        encoded[f"references.{variant}"] = backbone.encode_images(torch.stack([to_tensor(r) for r in references]))
    return encoded


def _reference(triplet: "Triplet", size: int, config: TrainingConfig, generator: np.random.Generator) -> Image.Image:
    image, mask = triplet.image, triplet.mask
    if config.references == "image":
        mask = Image.new("L", image.size, 255)
    if config.augment_references:
        return augment_reference(image, mask, size, generator)
    return reference_image(image, mask, size)
