"""The pool as the miniature Stable Diffusion reads it: latents, tokens, and where the subjects are."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from dreamcache.processes import process_count, process_rank, wait_for_all
from miniature.train.arithmetic import fast_arithmetic
from miniature.train.data import SIZE, Pool
from miniature.train.vae import FOLDER as VAE
from miniature.train.workspace import Workspace

CAPTION_DROPOUT = 0.1
SUBJECT_WEIGHT = 4.0  # of an error on a subject, beside 1 on the background, which is learned sooner


@dataclass(frozen=True)
class LatentBatch:
    """A batch: latents (B, C, 16, 16) float32, tokens (B, L), and how much each latent's error counts (B, 16, 16)."""

    latents: Tensor
    tokens: Tensor
    importance: Tensor


@dataclass(frozen=True)
class LatentPool:
    """Every scene and its mirror image: scaled latents (2, N, C, 16, 16), importance (2, N, 16, 16), tokens (N, L).

    `no_caption` (L,) are the tokens of an empty caption. All of it lies on one device, latents in float16.
    """

    latents: Tensor
    importance: Tensor
    tokens: Tensor
    no_caption: Tensor

    @classmethod
    def of(cls, workspace: Workspace, vae: AutoencoderKL, tokenizer: Any) -> "LatentPool":
        """The workspace's pool on its device; what `vae` makes of it is kept in the pool's folder."""
        captions = ["", *(scene["caption"] for scene in workspace.pool.scenes)]
        tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
        latents = torch.from_numpy(encode_pool(workspace, vae))
        parts = (latents, importance_of(workspace.pool), tokens[1:], tokens[0])
        return cls(*(part.to(workspace.device) for part in parts))

    def sample(self, count: int, generator: torch.Generator) -> LatentBatch:
        """`count` scenes drawn uniformly, each in the mirror or not, some without their caption."""
        scenes = torch.randint(len(self.tokens), (count,), generator=generator).to(self.tokens.device)
        mirrored = torch.randint(2, (count,), generator=generator).to(self.tokens.device)
        dropped = (torch.rand(count, generator=generator) < CAPTION_DROPOUT).to(self.tokens.device)
        tokens = torch.where(dropped[:, None], self.no_caption, self.tokens[scenes])
        return LatentBatch(self.latents[mirrored, scenes].float(), tokens, self.importance[mirrored, scenes])


@torch.no_grad()
def encode_pool(workspace: Workspace, vae: AutoencoderKL) -> np.ndarray:
    """Scaled latents of every scene and its mirror image, float16 (2, N, C, 16, 16), kept in the pool's folder."""
    weights = (workspace.checkpoints / VAE / "diffusion_pytorch_model.safetensors").read_bytes()
    file = workspace.pool.folder / f"latents-{hashlib.sha256(weights).hexdigest()[:12]}.npy"
    count = len(workspace.pool)
    if not file.exists():
        temporary = file.with_suffix(".tmp.npy")
        if process_rank() == 0:
            shape = (2, count, vae.config.latent_channels, 16, 16)
            np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
        wait_for_all()
        latents = np.lib.format.open_memmap(temporary, mode="r+")
        for first in range(64 * process_rank(), count, 64 * process_count()):
            indices = list(range(first, min(first + 64, count)))
            images = workspace.pool.images(indices).to(workspace.device)
            for mirrored in range(2):
                with fast_arithmetic(workspace.device):
                    encoded = vae.encode(images.flip(-1) if mirrored else images).latent_dist.mean
                latents[mirrored, indices] = (encoded.float() * vae.config.scaling_factor).cpu().numpy()
            if first % 3200 == 0:
                print(f"unet: {first}/{count} scenes encoded", flush=True)
        latents.flush()
        wait_for_all()
        if process_rank() == 0:
            temporary.rename(file)
    wait_for_all()
    return np.load(file, mmap_mode="c")  # copy on write: PyTorch takes no array that is read-only


def importance_of(pool: Pool) -> Tensor:
    """How much the error of each latent counts, (2, N, 16, 16): 1 on the background to SUBJECT_WEIGHT on a subject.

    First of all scenes as they are, then in the mirror.
    """
    parts = []
    for first in range(0, len(pool), 1024):
        indices = list(range(first, min(first + 1024, len(pool))))
        subjects = pool.masks(indices).maximum(pool.masks(indices, "second_masks"))
        parts.append(1.0 + (SUBJECT_WEIGHT - 1.0) * F.avg_pool2d(subjects, SIZE // 16))
    seen = torch.cat(parts)
    return torch.stack([seen, seen.flip(-1)])
