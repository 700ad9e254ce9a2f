"""The trainings of the miniature: truthful targets, tokenizers, the grown detector."""

import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn
from transformers import ViTModel

from miniature.grammar import taxonomy, vocabulary_text
from miniature.subjects import CLASSES
from miniature.train import clip, detector, dino, latents, sam, unet
from miniature.train.data import Pool, pool_instance
from miniature.train.dino import contrastive_loss
from miniature.train.examples import sample_phrase
from miniature.train.looks import Looks, drawing_error, spots
from miniature.train.optimizers import Muon, Optimizers, orthogonalized
from miniature.train.tokenizers import build_clip_tokenizer, build_llama_tokenizer
from miniature.train.vae import FOLDER as VAE
from miniature.train.workspace import CHECKPOINTS, Workspace


def test_muon_moves_all_directions_of_a_matrix_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 24, 64), (1, 64, 24)):
        skewed = torch.randn(shape, generator=generator) * torch.logspace(0, -2, shape[-1])
        found = torch.linalg.svdvals(orthogonalized(skewed))
        assert found.min() > 0.4 and found.max() < 1.4
    layer = nn.Conv2d(16, 32, 3, bias=False)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.randn(layer.weight.shape, generator=generator)
    Muon([layer.weight], lr=0.1, weight_decay=0.0).step()
    assert float((layer.weight - before).square().mean().sqrt()) == pytest.approx(0.1 * 0.2, rel=0.2)


def test_muon_takes_the_inner_matrices_and_adamw_the_rest() -> None:
    module = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 3))
    muon, adamw = Optimizers(module, 0.1, 0.0).both
    taken = [[id(p) for group in one.param_groups for p in group["params"]] for one in (muon, adamw)]
    assert taken[0] == [id(module[1].weight)]
    assert sorted(taken[0] + taken[1]) == sorted(id(p) for p in module.parameters())


def test_phrases_are_true_of_their_scene_and_stated_attributes_decide(pool: Pool) -> None:
    rng = np.random.default_rng(0)
    stated = [sample_phrase(scene, rng)[1] for scene in pool.scenes]
    truth = clip.truth_table(stated, pool.scenes)
    assert truth.diagonal().all()
    for row, said in enumerate(stated):
        for column, scene in enumerate(pool.scenes):
            assert bool(truth[row, column]) == (said.items() <= scene.items())


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


def test_the_clip_tokenizer_reads_the_grammar_in_single_words_and_anything_else_in_pieces() -> None:
    tokenizer = build_clip_tokenizer(vocabulary_text())
    words = {word for noun in CLASSES for word in noun.split()}
    assert all(len(tokenizer.tokenize(word)) == 1 for word in words)
    assert tokenizer.unk_token_id not in tokenizer("Zürich, 7 quartz @ x", add_special_tokens=False)["input_ids"]
    assert tokenizer.eos_token_id == len(tokenizer) - 1  # CLIP and OWL-ViT pool the text at the largest id
    longest = max(len(tokenizer(text)["input_ids"]) for text in vocabulary_text())
    assert longest <= tokenizer.model_max_length


def test_the_llama_tokenizer_keeps_text() -> None:
    tokenizer = build_llama_tokenizer(["Subject: teapot\nJSON:\n{}", *taxonomy()["places"]])
    text = 'Subject: teapot\nPlace: on a beach\n{"caption": "naïve ☂"}'
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_detector_grows_out_of_clip() -> None:
    torch.manual_seed(0)
    tokenizer = build_clip_tokenizer(vocabulary_text())
    towers = clip.build(tokenizer)
    whole = detector.build(towers)
    grown = whole.owlvit
    vision = "encoder.layers.2.mlp.fc1.weight"
    assert torch.equal(grown.vision_model.state_dict()[vision], towers.vision_model.state_dict()[vision])
    own = grown.text_model.embeddings.position_embedding.weight
    assert torch.equal(own, towers.text_model.embeddings.position_embedding.weight[: len(own)])
    assert torch.equal(grown.text_projection.weight, towers.text_projection.weight)
    assert torch.equal(grown.vision_model.pre_layernorm.weight, towers.vision_model.pre_layrnorm.weight)
    tokens = tokenizer(["a dog", "a cat"], padding="max_length", max_length=16, return_tensors="pt")
    begun = whole(pixel_values=torch.randn(1, 3, 128, 128), **tokens)
    answered = detector.answer(whole, torch.zeros(2, 3, 128, 128), tokens)
    asked = whole(
        pixel_values=torch.zeros(2, 3, 128, 128), **{name: tensor.repeat(2, 1) for name, tensor in tokens.items()}
    )
    assert torch.allclose(answered[0], asked.logits, atol=1e-5)  # nouns read once answer as the library's own pass does
    assert torch.allclose(answered[1], asked.pred_boxes, atol=1e-6)
    assert begun.logits.max() < 10 and begun.pred_boxes[..., 2:].mean() < 0.3  # few answers, boxes about as a patch


def test_patches_in_the_middle_of_a_box_answer_for_it() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [float("nan")] * 4]])
    answers = detector.patch_targets(boxes).reshape(8, 8, 2)
    assert answers[1:3, 1:3, 0].all() and answers[..., 0].sum() == 4
    assert not answers[..., 1].any()


def test_detection_loss_prefers_right_boxes_and_right_patches() -> None:
    boxes = torch.tensor([[[0.25, 0.25, 0.75, 0.75], [float("nan")] * 4]])
    answers = detector.patch_targets(boxes).float()
    right = torch.tensor([0.5, 0.5, 0.5, 0.5]).expand(1, 64, 4)
    good = detector.detection_loss(answers * 12 - 6, right, boxes)
    assert good < 0.1
    assert detector.detection_loss(6 - answers * 12, right, boxes) > good + 1
    assert detector.detection_loss(answers * 12 - 6, right * 0.5, boxes) > good + 1


def test_flipped_boxes_and_prompts_follow_the_picture(pool: Pool) -> None:
    generator = torch.Generator().manual_seed(0)
    indices = list(range(len(pool)))
    boxes = detector.noun_boxes(pool, indices, torch.ones(len(pool), dtype=torch.bool))
    for row, index in enumerate(indices):
        scene = pool.scenes[index]
        column = CLASSES.index(scene["class"])
        left, _, right, _ = scene["box"]
        assert boxes[row, column, 0] == pytest.approx(1 - right / 128)
        assert boxes[row, column, 2] == pytest.approx(1 - left / 128)
        assert (~boxes[row].isnan().any(-1)).sum() == 1 + (scene["second"] is not None)
    _, masks, corners = sam.sample_prompts(pool, generator)
    for mask, (left, top, right, bottom) in zip(masks, corners.round().int().tolist(), strict=True):
        assert mask[top:bottom, left:right].sum() > 0.8 * mask.sum()


def test_refining_begins_from_the_finished_checkpoint(pool: Pool, tmp_path: Path) -> None:
    workspace = Workspace(pool, tmp_path / "states", tmp_path / "checkpoints", torch.device("cpu"), refine=True)
    with pytest.raises(FileNotFoundError, match="train dino from nothing first"):
        workspace.beginning("dino", dino.build())
    finished = dino.build()
    workspace.publish("dino", lambda folder: finished.half().save_pretrained(folder))
    begun = workspace.beginning("dino", dino.build())
    assert all(p.dtype == torch.float32 for p in begun.parameters())
    assert all(torch.equal(a.float(), b) for a, b in zip(finished.parameters(), begun.parameters(), strict=True))


def test_errors_on_subjects_count_more_where_the_picture_shows_them(pool: Pool) -> None:
    both = latents.importance_of(pool)
    assert both.shape == (2, len(pool), 16, 16)
    assert both.min() == 1.0 and both.max() == pytest.approx(latents.SUBJECT_WEIGHT)
    for mirrored, row in product((False, True), range(len(pool))):
        left, top, right, bottom = pool.scenes[row]["box"]
        left, right = (128 - right, 128 - left) if mirrored else (left, right)
        seen = both[int(mirrored), row]
        inside = seen[int(top) // 8 : int(bottom) // 8 + 1, int(left) // 8 : int(right) // 8 + 1]
        assert inside.mean() > 1.5
        if pool.scenes[row]["second"] is None:
            assert float((inside - 1.0).sum()) == pytest.approx(float((seen - 1.0).sum()), rel=0.02)


def test_the_unet_trains_on_scenes_and_their_mirror_images_and_is_published_whole(pool: Pool, tmp_path: Path) -> None:
    shipped, own = Workspace(pool, tmp_path, CHECKPOINTS, torch.device("cpu")), tmp_path / "checkpoints"
    shutil.copytree(CHECKPOINTS / "clip", own / "clip")
    shutil.copytree(CHECKPOINTS / VAE, own / VAE)
    unet.train(replace(shipped, states=tmp_path / "states", checkpoints=own, steps=2, batch=4))
    trained = StableDiffusionPipeline.from_pretrained(own / "stable-diffusion", torch_dtype=torch.float32)
    picture = trained("a teapot on a beach", num_inference_steps=1, output_type="np").images[0]
    assert picture.shape == (128, 128, 3) and np.isfinite(picture).all()

    scenes = latents.LatentPool.of(shipped, trained.vae, trained.tokenizer)
    images = pool.images([0, 1, 2, 3])
    for latent, shown, other in zip(scenes.latents, (images, images.flip(-1)), (images.flip(-1), images), strict=True):
        decoded = trained.vae.decode(latent[:4].float() / trained.vae.config.scaling_factor).sample.detach()
        assert (decoded - shown).abs().mean() < 0.5 * (decoded - other).abs().mean()
    batch = scenes.sample(64, torch.Generator().manual_seed(0))
    told = {tuple(row) for row in scenes.tokens.tolist()}
    silent = [row for row in batch.tokens.tolist() if row == scenes.no_caption.tolist()]
    assert 0 < len(silent) < 20
    assert {tuple(row) for row in batch.tokens.tolist()} <= told | {tuple(silent[0])}


def test_the_unet_has_the_block_layout_of_stable_diffusion_1_5() -> None:
    small = unet.build(latent_channels=8, text_width=128)
    transformers = [name for name, module in small.named_modules() if type(module).__name__ == "Transformer2DModel"]
    decoder = [f"up_blocks.{block}.attentions.{layer}" for block in (1, 2, 3) for layer in range(3)]
    encoder = [f"down_blocks.{block}.attentions.{layer}" for block in (0, 1, 2) for layer in range(2)]
    assert set(transformers) == {*encoder, *decoder, "mid_block.attentions.0"}
