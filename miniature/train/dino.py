"""The miniature's DINO: a ViT whose class token tells instances apart, across places and poses.

Self-distillation needs far more pictures than two cores can see; as instances are known here, the class token
learns from them directly, by the supervised contrastive loss. An instance's palette sharer is in the same
batch, so colour alone never suffices.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from miniature.subjects import CLASSES
from miniature.train.data import GROUP, VIEWS, Pool, flip_some
from miniature.train.loop import fit
from miniature.train.workspace import Workspace

STEPS = 3000
GROUPS = 24  # a batch: GROUPS groups x 2 instances x 2 views
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
    """Scenes of GROUPS groups from three classes: two views of both instances of each group."""
    groups = len(pool) // GROUP
    indices = []
    for class_index in torch.randperm(len(CLASSES), generator=generator)[:3].tolist():
        of_class = torch.randperm((groups - class_index - 1) // len(CLASSES) + 1, generator=generator)
        for place in of_class[: GROUPS // 3].tolist():
            group = place * len(CLASSES) + class_index
            for member in range(2):
                views = torch.randperm(VIEWS, generator=generator)[:2].tolist()
                indices += [group * GROUP + member * VIEWS + view for view in views]
    return indices


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
        images = flip_some(images, generator)[0].to(workspace.device)
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
