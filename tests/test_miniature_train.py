"""The trainings of the miniature: truthful targets, tokenizers, the grown detector."""

import math
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from dreamcache.objective import min_snr_weights
from miniature.grammar import taxonomy, vocabulary_text
from miniature.subjects import CLASSES
from miniature.train import clip, data, detector, dino, latents, llama, sam, unet
from miniature.train.data import Pool
from miniature.train.examples import sample_phrase, sample_request
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
    moved = layer.weight.detach().clone()
    assert float((moved - before).square().mean().sqrt()) == pytest.approx(0.1 * 0.2, rel=0.2)
    layer.weight.grad = torch.zeros_like(moved)
    Muon([layer.weight], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(layer.weight.detach(), moved * (1 - 0.1 * 0.5))


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


def test_matching_loss_is_least_where_all_that_is_true_shares_the_probability() -> None:
    truth = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    least = 0.5 * (math.log(2) / 4 + 2 * math.log(2) / 3)  # a phrase true of two scenes; two scenes of two phrases
    assert clip.matching_loss(truth * 40, truth) == pytest.approx(least, abs=1e-4)
    for wrong in (truth.roll(1, 0), truth.roll(1, 1), torch.zeros_like(truth)):
        assert clip.matching_loss(wrong * 40, truth) > least + 0.3


def test_patches_are_named_by_the_object_that_covers_them(pool: Pool) -> None:
    mirrored = torch.arange(len(pool)) % 2 == 0
    named = clip.named_patches(pool, list(range(len(pool))), mirrored)
    shown = {
        (row, CLASSES.index(one["class"])): one["box"]
        for row, scene in enumerate(pool.scenes)
        for one in (scene, scene["second"])
        if one is not None
    }
    for row, patch, noun in zip(named[0].tolist(), named[1].tolist(), named[2], strict=True):
        left, top, right, bottom = shown[row, noun]
        left, right = (128 - right, 128 - left) if mirrored[row] else (left, right)
        y, x = patch // 8 * 16 + 8, patch % 8 * 16 + 8
        assert left - 8 < x < right + 8 and top - 8 < y < bottom + 8
    assert {*zip(named[0].tolist(), named[2], strict=True)} == set(shown)


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


def test_boxes_of_nouns_follow_the_picture_and_its_mirror_image(pool: Pool) -> None:
    indices = list(range(len(pool)))
    mirrored = torch.arange(len(pool)) % 2 == 0
    boxes = detector.noun_boxes(pool, indices, mirrored)
    for row, index in enumerate(indices):
        scene = pool.scenes[index]
        shown = [one for one in (scene, scene["second"]) if one is not None]
        assert (~boxes[row].isnan().any(-1)).sum() == len(shown)
        for one in shown:
            left, top, right, bottom = one["box"]
            left, right = (128 - right, 128 - left) if mirrored[row] else (left, right)
            wanted = [side / 128 for side in (left, top, right, bottom)]
            assert boxes[row, CLASSES.index(one["class"])].tolist() == pytest.approx(wanted)


def test_prompts_are_of_an_object_that_the_picture_shows(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "DEGRADED_SHARE", 0.0)
    generator = torch.Generator().manual_seed(0)
    everyone = list(range(len(pool)))
    known = {pool.images([index]).numpy().tobytes(): (index, False) for index in everyone}
    known |= {pool.images([index]).flip(-1).numpy().tobytes(): (index, True) for index in everyone}
    seconds, moved, sides = [], [], set()
    for image, mask, corners in (
        row for _ in range(4) for row in zip(*sam.sample_prompts(pool, generator), strict=True)
    ):
        index, mirrored = known[image[None].numpy().tobytes()]
        scene, sides = pool.scenes[index], sides | {mirrored}
        mask = mask.flip(-1) if mirrored else mask
        second = not torch.equal(mask, pool.masks([index])[0])
        assert not second or torch.equal(mask, pool.masks([index], "second_masks")[0])
        left, top, right, bottom = (scene["second"] if second else scene)["box"]
        wanted = torch.tensor([128 - right, top, 128 - left, bottom] if mirrored else [left, top, right, bottom])
        reach = sam.JITTER * torch.tensor([right - left, bottom - top] * 2)
        assert ((corners - wanted).abs() <= reach + 1e-3).all()
        moved.append(float(((corners - wanted).abs() / reach).max()))
        if scene["second"] is not None:
            seconds.append(second)
    assert sides == {False, True} and max(moved) > 0.9
    assert 0.5 < sum(seconds) / len(seconds) < 0.9, "mostly the second object, which is smaller"


def test_mask_losses_are_of_each_candidate_and_know_its_overlap() -> None:
    masks = torch.zeros(1, 128, 128)
    masks[:, 32:65, 32:96] = 1.0
    small = nn.functional.interpolate(masks[:, None], (32, 32), mode="area")[0, 0]  # of 132 pixels, its edge a quarter
    half = small * (torch.arange(32) < 16)
    certain = torch.stack([small, half, 1 - small]) * 40 - 20
    losses, overlaps = sam.mask_losses(torch.cat([certain, torch.full((1, 32, 32), 0.25)])[None], masks)
    assert overlaps[0].tolist() == [1.0, 0.5, 0.0, 0.125]
    assert losses[0, 0] < 0.3 < losses[0, 1] < losses[0, 2]
    likely = 1 / (1 + math.exp(-0.25))
    entropy, dice = -math.log(likely) + 0.25 * 892 / 1024, 1 - (2 * likely * 132 + 1) / (likely * 1024 + 132 + 1)
    assert losses[0, 3] == pytest.approx(5 * entropy + dice)


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
    known = {scenes.latents[place].numpy().tobytes(): place for place in product((0, 1), range(len(pool)))}
    batch = scenes.sample(64, torch.Generator().manual_seed(0))
    places = [known[latent.half().numpy().tobytes()] for latent in batch.latents]
    assert {mirrored for mirrored, _ in places} == {0, 1} and len({scene for _, scene in places}) > len(pool) / 2
    silent = (batch.tokens == scenes.no_caption).all(1)
    assert 0 < silent.sum() < 20
    told = torch.stack([scenes.tokens[scene] for _, scene in places])
    assert torch.equal(batch.tokens[~silent], told[~silent])
    assert torch.equal(batch.importance, torch.stack([scenes.importance[place] for place in places]))


def test_the_unet_has_the_block_layout_of_stable_diffusion_1_5() -> None:
    small = unet.build(latent_channels=8, text_width=128)
    transformers = [name for name, module in small.named_modules() if type(module).__name__ == "Transformer2DModel"]
    decoder = [f"up_blocks.{block}.attentions.{layer}" for block in (1, 2, 3) for layer in range(3)]
    encoder = [f"down_blocks.{block}.attentions.{layer}" for block in (0, 1, 2) for layer in range(2)]
    assert set(transformers) == {*encoder, *decoder, "mid_block.attentions.0"}


def test_nearly_clean_timesteps_count_less() -> None:
    weights = min_snr_weights(unet.build_scheduler().alphas_cumprod, unet.MIN_SNR_GAMMA, "epsilon")
    assert len(weights) == 1000 and 0 < weights[0] < 0.01 and (weights[300:] == 1).all()
    assert (weights[1:] >= weights[:-1]).all()


def test_requests_are_fulfilled_by_their_captions_and_the_replies_alone_are_learned() -> None:
    rng, (words, extras) = np.random.default_rng(0), (taxonomy()["places"], taxonomy()["extras"])
    requests = [sample_request(rng) for _ in range(100)]
    for request in requests:
        assert f"{request.subject} " in request.caption and request.place in request.caption
        assert request.place in words and (request.extra is None or request.extra in request.caption)
        assert request.extra is not None or not any(extra in request.caption for extra in extras)
    assert 40 < sum(request.extra is not None for request in requests) < 80
    examples = [llama.sample_example(rng) for _ in range(3)]
    asked = [f"Detail: {extra}\n" in prompt for prompt, reply in examples for extra in extras if extra in reply]
    assert asked and all(asked)
    tokenizer = build_llama_tokenizer(["".join(example) for example in examples])
    batch = llama.batch_of(tokenizer, examples)
    for row, (prompt, reply) in enumerate(examples):
        ids, labels = (batch[name][row][batch["attention_mask"][row] == 1] for name in ("input_ids", "labels"))
        assert tokenizer.decode(ids) == f"<|begin_of_text|>{prompt}{reply}<|end_of_text|>"
        assert tokenizer.decode(labels[labels != -100]) == f"{reply}<|end_of_text|>"
        assert (ids == labels)[labels != -100].all() and (batch["labels"][row] != -100).sum() == (labels != -100).sum()
