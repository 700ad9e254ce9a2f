"""Target images: noise by record, faults, and the same code for Stable Diffusion and SDXL."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image, JpegImagePlugin
from tiny_datagen import tiny_dataset_config, tiny_models
from tiny_diffusion import tiny_tokenizer
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
)

from datagen import images
from datagen.config import derived_seed
from datagen.images import DiffusersPainter, ImagesConfig, encode_jpeg, image_fault
from shards.files import read_json_lines, read_tar_records
from shards.markers import rejects_path
from shards.stage import StageSpec, plan_shard


def save_tiny_sdxl(folder: Path) -> Path:
    """A Stable Diffusion XL with random weights, both text encoders, images of 32 px."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(48)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=48, projection_dim=16, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), layers_per_block=1, cross_attention_dim=32,
        transformer_layers_per_block=(1, 2), attention_head_dim=(2, 4), use_linear_projection=True, norm_num_groups=8,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 16,
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=32,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=vae, unet=unet, text_encoder=CLIPTextModel(text), text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer, tokenizer_2=tokenizer, scheduler=EulerDiscreteScheduler(), add_watermarker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def config_of(model: Path, **settings: object) -> ImagesConfig:
    base = tiny_dataset_config(tiny_models()).images
    return base.model_validate(base.model_dump() | {"model": str(model), **settings})


@pytest.mark.parametrize("kind", ["stable-diffusion", "sdxl"])
def test_an_image_is_its_records_own(tmp_path: Path, kind: str) -> None:
    """Noise comes from the record's seed, whatever else is in the batch and wherever it stands."""
    model = tiny_models() / kind if kind == "stable-diffusion" else save_tiny_sdxl(tmp_path)
    painter = DiffusersPainter(config_of(model))
    together = painter.paint(["a dog", "a cat", "a dog"], [1, 2, 3])
    assert together.dtype == np.float32 and 0 <= together.min() and together.max() <= 1
    alone = painter.paint(["a cat"], [2])
    assert together.shape[1:] == alone.shape[1:] and alone.shape[-1] == 3
    assert np.abs(together[1] - alone[0]).max() < 1e-4
    assert np.abs(together[0] - together[2]).max() > 1e-3


def test_the_vae_can_be_replaced() -> None:
    model = tiny_models() / "stable-diffusion"
    plain, replaced = (DiffusersPainter(config_of(model, vae=vae)) for vae in (None, str(model / "vae")))
    assert np.array_equal(plain.paint(["a dog"], [1]), replaced.paint(["a dog"], [1]))


def test_no_negative_prompt_is_not_an_empty_one(tmp_path: Path) -> None:
    """SDXL was trained with zeros in place of an unconditional prompt; the empty text is another condition."""
    painter = DiffusersPainter(config_of(save_tiny_sdxl(tmp_path), guidance_scale=5.0))
    seen = []
    encode = painter.pipeline.encode_prompt

    def recorded(*args: object, **more: object) -> tuple[torch.Tensor, ...]:
        seen.append(encode(*args, **more))
        return seen[-1]

    painter.pipeline.encode_prompt = recorded
    painter.paint(["a dog", "a cat"], [1, 2])
    positive, negative, *_ = seen[0]
    assert positive.shape[0] == 2 and positive.abs().min() > 0 and not negative.any()


def test_images_do_not_depend_on_a_package_that_marks_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Marks:
        def apply_watermark(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(images)

    config = config_of(save_tiny_sdxl(tmp_path))
    plain = DiffusersPainter(config).paint(["a dog"], [1])
    module = "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl"
    monkeypatch.setattr(f"{module}.is_invisible_watermark_available", lambda: True)
    monkeypatch.setattr(f"{module}.StableDiffusionXLWatermarker", Marks, raising=False)
    assert StableDiffusionXLPipeline.from_pretrained(tmp_path).watermark is not None
    assert np.array_equal(DiffusersPainter(config).paint(["a dog"], [1]), plain)


def test_negative_prompt_and_size_reach_the_model() -> None:
    model = tiny_models() / "stable-diffusion"
    plain, without_cats = (
        DiffusersPainter(config_of(model, size=32, negative_prompt=text)).paint(["a dog"], [1]) for text in ("", "cat")
    )
    assert plain.shape == (1, 32, 32, 3) and np.abs(plain - without_cats).max() > 1e-3


def test_how_it_runs_changes_no_image() -> None:
    model = tiny_models() / "stable-diffusion"
    plain = DiffusersPainter(config_of(model)).paint(["a dog"], [1])
    execution = {"device": "cpu", "channels_last": True, "offload": True}
    assert np.allclose(DiffusersPainter(config_of(model, execution=execution)).paint(["a dog"], [1]), plain, atol=1e-4)


def test_a_safety_model_flags_what_is_near_its_concepts(tmp_path: Path) -> None:
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    sides = {"height": 32, "width": 32}
    CLIPImageProcessor(size=sides, crop_size=sides).save_pretrained(tmp_path)
    images = np.random.default_rng(0).random((2, 64, 64, 3), dtype=np.float32)
    images[1] *= np.nan
    for threshold, flagged in ((1.5, False), (-1.5, True)):
        checker.concept_embeds_weights.data.fill_(threshold)
        checker.special_care_embeds_weights.data.fill_(1.5)
        checker.save_pretrained(tmp_path)
        painter = DiffusersPainter(config_of(tiny_models() / "stable-diffusion", safety_model=str(tmp_path)))
        before = images.copy()
        assert list(painter.unsafe(images)) == [flagged, flagged]
        assert np.array_equal(images, before, equal_nan=True)


def test_faults_are_told_apart() -> None:
    config = ImagesConfig(model="x")
    noise = np.random.default_rng(0).random((16, 16, 3), dtype=np.float32)
    assert image_fault(noise, config) is None
    broken = noise.copy()
    broken[3, 4, 1] = np.nan
    assert image_fault(broken, config) == "image not finite"
    assert image_fault(noise * 0.01, config) == "black image"
    assert image_fault(np.full_like(noise, 0.6), config) == "flat image"


def test_images_are_stored_at_the_size_asked_for() -> None:
    noise = np.random.default_rng(0).random((16, 16, 3), dtype=np.float32)
    for stored, expected in ((None, 16), (8, 8)):
        image = Image.open(io.BytesIO(encode_jpeg(noise, ImagesConfig(model="x", stored_size=stored))))
        assert image.size == (expected, expected)
        assert JpegImagePlugin.get_sampling(image) == 0  # colours as sharp as brightness
    coarse, fine = (encode_jpeg(noise, ImagesConfig(model="x", jpeg_quality=quality)) for quality in (30, 95))
    assert len(coarse) < len(fine)


class Failing:
    """A text-to-image model that gives NaN, black, grey, unsafe and good images, as the captions say."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def paint(self, captions: list[str], seeds: list[int]) -> np.ndarray:
        self.seeds += seeds
        made = []
        for caption in captions:
            image = np.random.default_rng(len(caption)).random((16, 16, 3), dtype=np.float32)
            made.append({"nan": image * np.nan, "black": image * 0, "grey": image * 0 + 0.5}.get(caption, image))
        return np.stack(made)

    def unsafe(self, images: np.ndarray) -> list[bool]:
        bad = np.random.default_rng(len("unsafe")).random((16, 16, 3), dtype=np.float32)
        return [np.array_equal(image, bad) for image in images]


def test_every_caption_becomes_an_image_or_a_reject(tmp_path: Path) -> None:
    captions = ["nan", "one dog", "black", "grey", "two cats", "nan", "unsafe"]
    source = plan_shard(tmp_path, StageSpec("dedup", 1, {}), 0)
    with source.writing(records_in=len(captions)) as out:
        for number, caption in enumerate(captions):
            out.add({"key": f"0-{number}", "caption": caption, "seed": number, "models": {"captions": "x"}})
    plan = plan_shard(tmp_path, StageSpec("images", 1, {}, {"model": "sha256:y"}, ".tar"), 0, [source.path])
    config = ImagesConfig(model="x", execution={"batch_size": 4})
    reports: list[tuple[int, int]] = []
    painter = Failing()
    marker = images.run(plan, config, painter, config.execution.model_dump(), lambda *done: reports.append(done))
    assert painter.seeds == [derived_seed(number, "image") for number in range(7)]
    assert (marker.records_in, marker.records_out) == (7, 2)
    assert marker.rejected == {"black image": 1, "flat image": 1, "image not finite": 2, "unsafe image": 1}
    kept = dict(read_tar_records(plan.path))
    assert list(kept) == ["0-1", "0-4"] and set(kept["0-1"]) == {"jpg", "json"}
    assert len(list(read_json_lines(rejects_path(plan.path)))) == 5
    assert reports == [(4, 7), (7, 7)]
