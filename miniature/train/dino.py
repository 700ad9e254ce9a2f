"""The miniature's DINO: a ViT whose class token tells instances apart, across places and poses.

Self-distillation needs far more pictures than two cores can see; as instances are known here, the class token
learns from them directly, by the supervised contrastive loss. All that share an instance's palette are in the
same batch, so colour alone never suffices.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from dreamcache.dreambooth.embedders import IMAGENET_MEAN, IMAGENET_STD
from miniature.subjects import CLASSES
from miniature.train.data import GROUP, MEMBERS, SIZE, VIEWS, Pool, flip_some
from miniature.train.loop import fit
from miniature.train.workspace import Workspace

STEPS = 3000
GROUPS = 6  # a batch: GROUPS groups x MEMBERS instances x 2 views
CLASSES_A_BATCH = 2  # few, so that most of a batch has to be told apart by more than its class
TEMPERATURE = 0.07


def build() -> ViTModel:
    config = ViTConfig(
        hidden_size=160,
        num_hidden_layers=5,
        num_attention_heads=5,
        intermediate_size=640,
        image_size=128,
        patch_size=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ViTModel(config, add_pooling_layer=False)


def sample_groups(pool: Pool, generator: torch.Generator) -> list[int]:
    """Scenes of GROUPS groups from few classes: two views of every instance of each group."""
    groups = len(pool) // GROUP
    indices = []
    for class_index in torch.randperm(len(CLASSES), generator=generator)[:CLASSES_A_BATCH].tolist():
        of_class = torch.randperm((groups - class_index - 1) // len(CLASSES) + 1, generator=generator)
        for place in of_class[: GROUPS // CLASSES_A_BATCH].tolist():
            group = place * len(CLASSES) + class_index
            for member in range(MEMBERS):
                views = torch.randperm(VIEWS, generator=generator)[:2].tolist()
                indices += [group * GROUP + member * VIEWS + view for view in views]
    return indices


def as_embedded(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, 3, 128, 128) in [-1, 1] as the benchmark's embedder reads them: enlarged, cropped, normalized.

    The embedder crops the centre; a crop at random is one more view.
    """
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    enlarged = round(SIZE * 256 / 224)
    left, top = torch.randint(enlarged - SIZE + 1, (2,), generator=generator).tolist()
    images = F.interpolate(images, (enlarged, enlarged), mode="bicubic", antialias=True)
    return ((images[..., top : top + SIZE, left : left + SIZE] + 1) / 2 - mean) / deviation


def contrastive_loss(tokens: Tensor) -> Tensor:
    """Supervised contrastive loss of class tokens (2N, D) in which rows 2i and 2i + 1 are one instance."""
    tokens = F.normalize(tokens, dim=-1)
    logits = tokens @ tokens.T / TEMPERATURE
    logits.fill_diagonal_(-1e4)
    partner = torch.arange(len(tokens), device=tokens.device) ^ 1
    return F.cross_entropy(logits, partner)


def train(workspace: Workspace) -> None:
    torch.manual_seed(0)
    vit = workspace.beginning("dino", build())

    def loss_at(_step: int, generator: torch.Generator) -> Tensor:
        images = workspace.pool.images(sample_groups(workspace.pool, generator))
        images = as_embedded(flip_some(images, generator)[0], generator).to(workspace.device)
        return contrastive_loss(vit(images).last_hidden_state[:, 0])

    def save(average: nn.Module) -> None:
        finished = copy.deepcopy(average)
        assert isinstance(finished, ViTModel)
        workspace.publish("dino", lambda folder: finished.half().save_pretrained(folder))

    fit(
        "dino",
        vit,
        loss_at,
        steps=workspace.steps or STEPS,
        learning_rate=2e-3,
        weight_decay=0.05,
        state_folder=workspace.states,
        save=save,
    )
