"""The training of the miniature's DINO: batches, what is read of pictures, and what is learned from the instances."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import ViTModel

from dreamcache.dreambooth.embedders import IMAGENET_MEAN, IMAGENET_STD
from miniature.subjects import CLASSES
from miniature.train import dino
from miniature.train.data import GROUP, MEMBERS, VIEWS, Pool, pool_instance
from miniature.train.dino import contrastive_loss
from miniature.train.looks import Looks, drawing_error, spots
from miniature.train.workspace import CHECKPOINTS, Workspace


def test_contrastive_loss_falls_as_partners_agree() -> None:
    tokens = torch.eye(4).repeat_interleave(2, 0)
    assert contrastive_loss(tokens) < 0.01 < 1 < contrastive_loss(tokens.roll(1, 0))


def test_the_embedder_learns_from_the_subject_patches_first_and_reads_all_of_them_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = torch.zeros(2, 16, 16)
    covered[0, 5:7, 8:10] = 1.0
    chosen = dino.choose_patches(covered.flatten(1), 4, generator)
    assert sorted(chosen[0].tolist()) == [5 * 16 + 8, 5 * 16 + 9, 6 * 16 + 8, 6 * 16 + 9]
    vit, images = dino.build().eval(), torch.randn(2, 3, 128, 128, generator=generator)
    with torch.no_grad():
        whole = vit(images).last_hidden_state[:, 0]
        shuffled = torch.stack([torch.randperm(256, generator=generator) for _ in range(2)])
        assert torch.allclose(dino.read(vit, images, shuffled)[0], whole, atol=1e-5)
        assert not torch.allclose(dino.read(vit, images, chosen)[0], whole, atol=1e-2)


def test_the_embedder_s_batches_pair_two_views_of_every_instance_of_a_group() -> None:
    drawn: Any = range((2 * len(CLASSES) + 1) * GROUP)  # of one class there is a group more
    batches = [dino.sample_groups(drawn, torch.Generator().manual_seed(seed)) for seed in range(40)]
    assert max(map(max, batches)) // GROUP == 2 * len(CLASSES)
    indices = batches[0]
    groups = [indices[first : first + 2 * MEMBERS] for first in range(0, len(indices), 2 * MEMBERS)]
    assert len(groups) == dino.GROUPS and len(set(indices)) == len(indices)
    for group in groups:
        assert len({index // GROUP for index in group}) == 1
        assert [index % GROUP // VIEWS for index in group] == [member for member in range(MEMBERS) for _ in range(2)]
    assert len({group[0] // GROUP % len(CLASSES) for group in groups}) == dino.CLASSES_A_BATCH
    assert all(dino.instance_of(index) == pool_instance(0, index // VIEWS) for index in range(0, GROUP, VIEWS))


def test_views_are_read_as_the_embedder_reads_them_and_know_their_subjects(pool: Pool) -> None:
    masks = pool.masks([0, 1])
    views = dino.as_embedded(masks[:, None].expand(-1, 3, -1, -1) * 2 - 1, masks, torch.Generator().manual_seed(0))
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    shown = views.images * deviation + mean
    assert shown.min() == pytest.approx(0, abs=0.2) and shown.max() == pytest.approx(1, abs=0.2)
    covered = nn.functional.avg_pool2d(shown[:, 0], dino.PATCH).flatten(1)
    assert (covered - views.spots[..., 0]).abs().max() < 0.1


@pytest.mark.parametrize(("refine", "read"), [(False, [dino.TOKENS, None]), (True, [None, None])])
def test_the_embedder_reads_images_whole_in_the_end_and_to_refine_always(
    refine: bool, read: list[int | None], pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, real = list[int | None](), dino.read
    if refine:
        shutil.copytree(CHECKPOINTS / "dino", tmp_path / "dino")

    def spied(vit: nn.Module, images: torch.Tensor, patches: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(None if patches is None else patches.shape[1])
        return real(vit, images, patches)

    monkeypatch.setattr(dino, "read", spied)
    monkeypatch.setattr(dino, "sample_groups", lambda *_: list(range(4)))  # the pool is too small to draw from
    dino.train(Workspace(pool, tmp_path / "states", tmp_path, torch.device("cpu"), steps=2, refine=refine))
    assert seen == read
    finished = ViTModel.from_pretrained(tmp_path / "dino", add_pooling_layer=False)
    assert all(weights.isfinite().all() for weights in finished.parameters())


def test_a_mirror_image_keeps_the_looks_that_the_embedder_names() -> None:
    one, build = pool_instance(0, 0), pool_instance(0, 1)
    mirrored = replace(one, pattern_angle=180 - one.pattern_angle)
    looks, mirrored_looks, other = (Looks.of([of], torch.device("cpu")) for of in (one, mirrored, build))
    assert torch.allclose(looks.measures, mirrored_looks.measures, atol=1e-5)
    assert torch.equal(looks.measures, other.measures) and one.proportions != build.proportions
    assert drawing_error(looks.drawings.flip(-1), looks.drawings) == 0
    assert drawing_error(other.drawings, looks.drawings) > 0.01


def test_a_patch_knows_where_on_the_subject_it_lies_even_if_the_crop_cuts_it() -> None:
    masks = torch.zeros(1, 40, 48)
    masks[0, 8:24, 4:36] = 1.0  # the box around the subject: 4 to 36 across, 8 to 24 down
    where = spots(masks, (slice(0, 32), slice(16, 48)), 8).unflatten(1, (4, 4))[0]
    assert where[1, :, 0].tolist() == [1.0, 1.0, 0.5, 0.0] and where[0, :, 0].sum() == 0
    assert where[1, :, 1].tolist() == [0.0, 0.5, 1.0, 1.5]  # centres at 20, 28, 36, 44
    assert where[:, 0, 2].tolist() == [-1.5, -0.5, 0.5, 1.5]
