"""The miniature's DINO: a ViT whose class token tells instances apart, across places and poses.

Self-distillation needs far more pictures than two cores can see; as instances are known here, the class token
learns from them directly: by the supervised contrastive loss, with all that share an instance's palette in the same
batch, so that colour alone never suffices, and by naming the looks that each instance was drawn from. Most of a
scene's background is dropped before the first layer, which saves more than half of the work (a masked autoencoder's
trick).
"""

import copy
import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from dreamcache.dreambooth.embedders import IMAGENET_MEAN, IMAGENET_STD
from miniature.subjects import ACCESSORIES, CLASSES, PATTERNS, Instance
from miniature.train.data import GROUP, MEMBERS, SIZE, VIEWS, Pool, flip_some, pool_instance
from miniature.train.loop import fit
from miniature.train.workspace import Workspace

STEPS = 4200
GROUPS = 6  # a batch: GROUPS groups x MEMBERS instances x 2 views
CLASSES_A_BATCH = 3  # few, so that most of a batch has to be told apart by more than its class
TEMPERATURE = 0.07
PATCH = 8  # a pattern repeats every 10 to 20 px: patches of 16 px blur it
TOKENS = 96  # patches read of an image in training, of 256; the subject's come first
WHOLE_EVERY = 12  # every so many steps half a batch is read whole, as the embedder does


def build() -> ViTModel:
    config = ViTConfig(
        hidden_size=160,
        num_hidden_layers=5,
        num_attention_heads=5,
        intermediate_size=640,
        image_size=128,
        patch_size=PATCH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ViTModel(config, add_pooling_layer=False)


def sample_groups(pool: Pool, generator: torch.Generator, groups: int = GROUPS) -> list[int]:
    """Scenes of `groups` groups from few classes: two views of every instance of each group."""
    drawn = len(pool) // GROUP
    indices = []
    for class_index in torch.randperm(len(CLASSES), generator=generator)[:CLASSES_A_BATCH].tolist():
        of_class = torch.randperm((drawn - class_index - 1) // len(CLASSES) + 1, generator=generator)
        for place in of_class[: max(1, groups // CLASSES_A_BATCH)].tolist():
            group = place * len(CLASSES) + class_index
            for member in range(MEMBERS):
                views = torch.randperm(VIEWS, generator=generator)[:2].tolist()
                indices += [group * GROUP + member * VIEWS + view for view in views]
    return indices


def as_embedded(images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (B, 3, 128, 128) in [-1, 1] as the benchmark's embedder reads them: enlarged, cropped, normalized.

    The embedder crops the centre; a crop at random is one more view. The subjects' masks (B, 128, 128) follow.
    """
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    enlarged = round(SIZE * 256 / 224)
    left, top = torch.randint(enlarged - SIZE + 1, (2,), generator=generator).tolist()
    window = (..., slice(top, top + SIZE), slice(left, left + SIZE))
    images = F.interpolate(images, (enlarged, enlarged), mode="bicubic", antialias=True)[window]
    masks = F.interpolate(masks[:, None], (enlarged, enlarged), mode="bilinear")[window][:, 0]
    return ((images + 1) / 2 - mean) / deviation, masks


def choose_patches(masks: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices (B, count) of the patches to read: those that masks (B, 128, 128) touch, filled up with others."""
    touched = F.max_pool2d(masks[:, None], PATCH).flatten(1) > 0.1
    return (touched.float() + torch.rand(touched.shape, generator=generator)).topk(count).indices


def class_token(vit: ViTModel, images: Tensor, patches: Tensor | None) -> Tensor:
    """The normalized class token (B, D) of images, read whole or, with indices (B, K), by those patches alone."""
    hidden = vit.embeddings(images)
    if patches is not None:
        read = F.pad(patches + 1, (1, 0)).to(hidden.device)  # token 0 is the class token
        hidden = hidden.gather(1, read[..., None].expand(-1, -1, hidden.shape[-1]))
    for layer in vit.layers:
        hidden = layer(hidden, None)
    token: Tensor = vit.layernorm(hidden[:, 0])
    return token


def contrastive_loss(tokens: Tensor) -> Tensor:
    """Supervised contrastive loss of class tokens (2N, D) in which rows 2i and 2i + 1 are one instance."""
    tokens = F.normalize(tokens, dim=-1)
    logits = tokens @ tokens.T / TEMPERATURE
    logits.fill_diagonal_(-1e4)
    partner = torch.arange(len(tokens), device=tokens.device) ^ 1
    return F.cross_entropy(logits, partner)


@dataclass(frozen=True)
class Looks:
    """What instances were drawn from: names as (B,) indices, measures as (B, 17) of deviation about 1.

    Measures: the palette's nine values, five proportions, the pattern's scale, and cosines of twice and four times
    its angle (those that a mirror image keeps).
    """

    patterns: Tensor
    accessories: Tensor
    measures: Tensor

    @classmethod
    def of(cls, instances: list[Instance], device: torch.device) -> "Looks":
        rows = []
        for one in instances:
            palette = [value / 255 for colour in one.palette for value in colour]
            angle = math.radians(one.pattern_angle)
            spread = [3.5 * (value - 0.5) for value in (*palette, *one.proportions)]
            rows.append([*spread, 20 * (one.pattern_scale - 0.255), math.cos(2 * angle), math.cos(4 * angle)])
        return cls(
            torch.tensor([PATTERNS.index(one.pattern) for one in instances], device=device),
            torch.tensor([ACCESSORIES.index(one.accessory) for one in instances], device=device),
            torch.tensor(rows, device=device),
        )


class Learner(nn.Module):
    """The ViT, and beside it the heads that name an instance's looks from the class token; only the ViT is kept."""

    def __init__(self, vit: ViTModel) -> None:
        super().__init__()
        self.vit = vit
        width = vit.config.hidden_size
        self.pattern, self.accessory = nn.Linear(width, len(PATTERNS)), nn.Linear(width, len(ACCESSORIES))
        self.measures = nn.Linear(width, 17)

    def loss(self, images: Tensor, patches: Tensor | None, looks: Looks) -> Tensor:
        """Contrastive loss and errors of the named looks, for images (2N, 3, 128, 128) of N instances in pairs."""
        tokens = class_token(self.vit, images, patches)
        return (
            contrastive_loss(tokens)
            + F.cross_entropy(self.pattern(tokens), looks.patterns)
            + 0.5 * F.cross_entropy(self.accessory(tokens), looks.accessories)
            + F.mse_loss(self.measures(tokens).float(), looks.measures)
        )


@cache
def instance_of(first: int) -> Instance:
    """The instance whose first scene in the pool is `first`, kept: to draw a palette sharer takes milliseconds."""
    return pool_instance(first // GROUP, first % GROUP // VIEWS)


def train(workspace: Workspace) -> None:
    torch.manual_seed(0)
    pool, device = workspace.pool, workspace.device
    learner = Learner(workspace.beginning("dino", build())).to(device)

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        whole = step % WHOLE_EVERY == 0
        indices = sample_groups(pool, generator, GROUPS // 2 if whole else GROUPS)
        images, mirrored = flip_some(pool.images(indices), generator)
        masks = pool.masks(indices)
        masks = torch.where(mirrored[:, None, None], masks.flip(-1), masks)
        images, masks = as_embedded(images, masks, generator)
        patches = None if whole else choose_patches(masks, TOKENS, generator)
        looks = Looks.of([instance_of(index - index % VIEWS) for index in indices], device)
        return learner.loss(images.to(device), patches, looks)

    def save(average: nn.Module) -> None:
        finished = copy.deepcopy(average)
        assert isinstance(finished, Learner)
        workspace.publish("dino", lambda folder: finished.vit.half().save_pretrained(folder))

    fit(
        "dino",
        learner,
        loss_at,
        steps=workspace.steps or STEPS,
        learning_rate=2e-3,
        weight_decay=0.05,
        state_folder=workspace.states,
        save=save,
    )
