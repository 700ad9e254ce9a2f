"""The miniature's DINO: a ViT whose class token tells instances apart, across places and poses.

Self-distillation needs far more pictures than two cores can see; as instances are known here, the class token
learns from them directly: by the supervised contrastive loss, with all that share an instance's palette in the same
batch, so that colour alone never suffices; by naming the looks that each instance was drawn from; and by drawing it
anew, upright and alone, which nobody can who has not seen its build. The patches learn where on the subject they lie.
At first most of a scene's background is dropped before the first layer, which saves more than half of the work (a
masked autoencoder's trick). Half of the pictures are blurred and noisy: generated ones are not sharp.
"""

import copy
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from dreamcache.dreambooth.embedders import IMAGENET_MEAN, IMAGENET_STD
from miniature.subjects import ACCESSORIES, CLASSES, PATTERNS, Instance
from miniature.train.data import GROUP, MEMBERS, SIZE, VIEWS, Pool, degrade_some, flip_some, pool_instance
from miniature.train.looks import DRAWING, MEASURES, Looks, drawing_error, spots
from miniature.train.loop import fit
from miniature.train.workspace import Workspace

STEPS = 4200
GROUPS = 6  # a batch: GROUPS groups x MEMBERS instances x 2 views
CLASSES_A_BATCH = 3  # few, so that most of a batch has to be told apart by more than its class
TEMPERATURE = 0.07
PATCH = 8  # a pattern repeats every 10 to 20 px: patches of 16 px blur it
TOKENS = 96  # patches read of an image in training, of 256; the subject's come first
DRAWING_WEIGHT = 20.0  # brings the error, a few hundredths, to the size of the other losses
# From this part of the steps on images are read whole, as the embedder does, half a batch at a time; to refine, always.
WHOLE_FROM = 0.5


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


@dataclass(frozen=True)
class Views:
    """Pictures as the benchmark's embedder reads them, and where their patches lie on the subjects.

    images: (B, 3, 128, 128), normalized. spots: (B, 256, 3), see `looks.spots`.
    """

    images: Tensor
    spots: Tensor


def as_embedded(images: Tensor, masks: Tensor, generator: torch.Generator) -> Views:
    """Images (B, 3, 128, 128) in [-1, 1] and masks (B, 128, 128), enlarged, cropped and normalized.

    The embedder crops the centre; a crop at random is one more view.
    """
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    enlarged = round(SIZE * 256 / 224)
    left, top = torch.randint(enlarged - SIZE + 1, (2,), generator=generator).tolist()
    window = (slice(top, top + SIZE), slice(left, left + SIZE))
    images = F.interpolate(images, (enlarged, enlarged), mode="bicubic", antialias=True)[(..., *window)]
    masks = F.interpolate(masks[:, None], (enlarged, enlarged), mode="bilinear")[:, 0]
    return Views(((images + 1) / 2 - mean) / deviation, spots(masks, window, PATCH))


def choose_patches(covered: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices (B, count) of the patches to read: those that a subject covers (B, 256), filled up with others."""
    return ((covered > 0.02).float() + torch.rand(covered.shape, generator=generator)).topk(count).indices


def read(vit: ViTModel, images: Tensor, patches: Tensor | None) -> tuple[Tensor, Tensor]:
    """The normalized class token (B, D), and the patches before the last layer (B, K, D).

    Images are read whole or, with indices (B, K), by those patches alone.
    """
    hidden = vit.embeddings(images)
    if patches is not None:
        chosen = F.pad(patches + 1, (1, 0))  # token 0 is the class token
        hidden = hidden.gather(1, chosen[..., None].expand(-1, -1, hidden.shape[-1]))
    for layer in vit.layers[:-1]:
        hidden = layer(hidden, None)
    token: Tensor = vit.layernorm(vit.layers[-1](hidden, None)[:, 0])
    return token, hidden[:, 1:]


def contrastive_loss(tokens: Tensor) -> Tensor:
    """Supervised contrastive loss of class tokens (2N, D) in which rows 2i and 2i + 1 are one instance."""
    tokens = F.normalize(tokens, dim=-1)
    logits = tokens @ tokens.T / TEMPERATURE
    logits.fill_diagonal_(-1e4)
    partner = torch.arange(len(tokens), device=tokens.device) ^ 1
    return F.cross_entropy(logits, partner)


class Learner(nn.Module):
    """The ViT, and beside it the heads that name what it has read; only the ViT is kept."""

    def __init__(self, vit: ViTModel) -> None:
        super().__init__()
        self.vit = vit
        width = vit.config.hidden_size
        self.pattern, self.accessory = nn.Linear(width, len(PATTERNS)), nn.Linear(width, len(ACCESSORIES))
        self.measures, self.spots = nn.Linear(width, MEASURES), nn.Linear(width, 3)
        self.drawing = nn.Sequential(
            nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 4 * DRAWING**2), nn.Unflatten(1, (4, DRAWING, DRAWING))
        )

    def loss(self, views: Views, patches: Tensor | None, looks: Looks) -> Tensor:
        """Contrastive loss and errors of what is named, for views of N instances in pairs."""
        tokens, read_patches = read(self.vit, views.images, patches)
        where = views.spots if patches is None else views.spots.gather(1, patches[..., None].expand(-1, -1, 3))
        errors = (self.spots(read_patches).float() - where).square()
        return (
            contrastive_loss(tokens)
            + F.cross_entropy(self.pattern(tokens), looks.patterns)
            + 0.5 * F.cross_entropy(self.accessory(tokens), looks.accessories)
            + F.mse_loss(self.measures(tokens).float(), looks.measures)
            + DRAWING_WEIGHT * drawing_error(self.drawing(tokens).float().sigmoid(), looks.drawings)
            + errors[..., 0].mean()
            + (errors[..., 1:].mean(-1) * where[..., 0]).sum() / where[..., 0].sum().clamp(min=1)
        )


@cache
def instance_of(first: int) -> Instance:
    """The instance whose first scene in the pool is `first`, kept: to draw a palette sharer takes milliseconds."""
    return pool_instance(first // GROUP, first % GROUP // VIEWS)


def train(workspace: Workspace) -> None:
    torch.manual_seed(0)
    pool, device = workspace.pool, workspace.device
    learner = Learner(workspace.beginning("dino", build())).to(device)

    if workspace.compile:
        for layer in learner.vit.layers:
            layer.compile()
    steps = workspace.steps or STEPS

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        whole = workspace.refine or step >= WHOLE_FROM * steps
        indices = sample_groups(pool, generator, GROUPS // 2 if whole else GROUPS)
        images, mirrored = flip_some(pool.images(indices), generator)
        masks = pool.masks(indices)
        masks = torch.where(mirrored[:, None, None], masks.flip(-1), masks)
        views = as_embedded(degrade_some(images, generator), masks, generator)
        patches = None if whole else choose_patches(views.spots[..., 0], TOKENS, generator).to(device)
        looks = Looks.of([instance_of(index - index % VIEWS) for index in indices], device)
        return learner.loss(Views(views.images.to(device), views.spots.to(device)), patches, looks)

    def save(average: nn.Module) -> None:
        finished = copy.deepcopy(average)
        assert isinstance(finished, Learner)
        workspace.publish("dino", lambda folder: finished.vit.half().save_pretrained(folder))

    fit(
        "dino",
        learner,
        loss_at,
        steps=steps,
        learning_rate=2e-3,
        weight_decay=0.05,
        state_folder=workspace.states,
        save=save,
    )
