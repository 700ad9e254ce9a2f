"""Preprocessing against a resize written here, embeddings against a forward pass written here, and bad images."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_embedders import save_tiny_clip, save_tiny_dino

from dreamcache.dreambooth.embedders import load_clip, load_dino, open_image
from dreamcache.dreambooth.models import model_identity

IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
CLIP = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    return load_dino(save_tiny_dino(tmp_path_factory.mktemp("models") / "dino"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return load_clip(save_tiny_clip(tmp_path_factory.mktemp("models") / "clip"))


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth random pixels, uint8, with a trend, so that a shifted or mirrored crop shows."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 255, (height // 4 + 2, width // 4 + 2, channels))
    pixels = np.kron(coarse, np.ones((4, 4, 1)))[:height, :width]
    return np.round(pixels * 0.7 + np.linspace(0, 76, width)[None, :, None]).astype(np.uint8)


def cubic_resize(pixels: np.ndarray, length: int) -> np.ndarray:
    """Bicubic resize along the first axis, antialiased: the cubic of a = -0.5, widened when shrinking."""
    scale = len(pixels) / length
    support = max(scale, 1.0)
    distance = np.abs((np.arange(len(pixels))[None] + 0.5 - (np.arange(length)[:, None] + 0.5) * scale) / support)
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    weights /= weights.sum(1, keepdims=True)
    return np.clip(np.round(np.tensordot(weights, pixels.astype(np.float64), 1)), 0, 255)


def independent(pixels: np.ndarray, resize: int, crop: int, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Short side to `resize`, centre crop, normalize: (3, crop, crop), from (H, W, 3) uint8."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    new_height, new_width = resize * height // short, resize * width // short
    pixels = cubic_resize(pixels.transpose(1, 0, 2), new_width).transpose(1, 0, 2)
    pixels = cubic_resize(pixels, new_height)
    top, left = round((new_height - crop) / 2), round((new_width - crop) / 2)
    pixels = pixels[top : top + crop, left : left + crop]
    return ((pixels / 255 - mean) / std).transpose(2, 0, 1)


@pytest.mark.parametrize("size", [(48, 48), (61, 47), (47, 90), (33, 37), (20, 31), (200, 150)])
def test_preprocessing_is_as_computed_independently(dino, clip, size):
    pixels = noise(*size)
    image = Image.fromarray(pixels)
    one_level = 1.01 / 255  # PIL's weights are fixed-point numbers, so that a level may round the other way
    result = dino.preprocess(image).numpy()
    expected = independent(pixels, 37, 32, *IMAGENET)  # round(32 * 256 / 224)
    assert result.shape == (3, 32, 32) and result.dtype == np.float32
    assert np.abs(result - expected).max() <= one_level / IMAGENET[1].min()
    assert np.abs(result - expected).mean() < 0.1 * one_level / IMAGENET[1].min()
    result, expected = clip.preprocess(image).numpy(), independent(pixels, 32, 32, *CLIP)
    assert np.abs(result - expected).max() <= one_level / CLIP[1].min()
    assert np.abs(result - expected).mean() < 0.1 * one_level / CLIP[1].min()


def test_published_scores_sizes(tmp_path):
    dino = load_dino(save_tiny_dino(tmp_path / "dino", image_size=224))
    pixels = noise(300, 280)
    result = dino.preprocess(Image.fromarray(pixels)).numpy()
    assert result.shape == (3, 224, 224)
    assert np.abs(result - independent(pixels, 256, 224, *IMAGENET)).max() < 1.01 / 255 / 0.224


def test_an_image_of_one_colour_is_normalized_exactly(dino, clip):
    image = Image.new("RGB", (40, 50), (255, 102, 0))
    levels = np.array([1.0, 0.4, 0.0])
    for embedder, (mean, std) in ((dino, IMAGENET), (clip, CLIP)):
        expected = np.broadcast_to(((levels - mean) / std)[:, None, None], (3, 32, 32))
        np.testing.assert_allclose(embedder.preprocess(image).numpy(), expected, atol=1e-6)


def test_exif_rotation_is_obeyed(tmp_path):
    pixels = noise(40, 24)
    for orientation, turned in {1: pixels, 3: pixels[::-1, ::-1], 6: np.rot90(pixels, -1), 8: np.rot90(pixels)}.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
        np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "turned.png")), turned)


def test_grey_alpha_palette_and_16_bits(tmp_path):
    def opened(image: Image.Image, suffix: str = ".png", **options) -> np.ndarray:
        image.save(tmp_path / f"image{suffix}", **options)
        result = open_image(tmp_path / f"image{suffix}")
        assert result.mode == "RGB"
        return np.asarray(result)

    grey = noise(20, 16, 1)[..., 0]
    in_colour = np.repeat(grey[..., None], 3, -1)
    np.testing.assert_array_equal(opened(Image.fromarray(grey)), in_colour)
    for suffix in (".png", ".tif"):
        np.testing.assert_array_equal(opened(Image.fromarray(grey.astype(np.uint16) * 257), suffix), in_colour)
    nearly = np.minimum(grey.astype(np.uint16) * 257 + 100, 65535).astype(np.uint16)
    np.testing.assert_array_equal(opened(Image.fromarray(nearly)), in_colour)
    np.testing.assert_array_equal(opened(Image.fromarray(grey.astype(np.uint16))), in_colour)  # 8 bits stored in 16

    pixels, alpha = noise(20, 16), noise(20, 16, 1, seed=1)[..., 0]
    share = alpha[..., None] / 255
    over_white = pixels * share + 255 * (1 - share)
    rgba = Image.fromarray(np.dstack([pixels, alpha]))
    assert np.abs(opened(rgba) - over_white).max() <= 1
    assert (
        np.abs(opened(rgba.convert("LA")) - np.asarray(rgba.convert("L"))[..., None] * share - 255 * (1 - share)).max()
        <= 1
    )
    indexed = Image.new("P", (20, 16), 1)
    indexed.putpalette([0, 0, 0, 10, 20, 30])
    assert (opened(indexed) == [10, 20, 30]).all()
    assert (opened(indexed, transparency=1) == 255).all()
    assert (opened(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), ".tif") == 255).all()
    assert (opened(Image.new("1", (8, 8), 1)) == 255).all()


def test_unreadable_images_are_named(dino, tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.png: no such image"):
        dino.embed_images([tmp_path / "gone.png"])
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="text.png: not a readable image"):
        dino.embed_images([tmp_path / "text.png"])
    whole = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(whole, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[:-200])
    with pytest.raises(ValueError, match="cut.jpg: not a readable image"):
        dino.embed_images([tmp_path / "cut.jpg"])
    Image.fromarray(noise(8, 8, 1)[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="floating-point pixels"):
        open_image(tmp_path / "float.tif")


def test_batch_size_changes_nothing(dino, clip):
    images = [Image.fromarray(noise(40 + number, 50, seed=number)) for number in range(32)]
    for embed in (dino.embed_images, clip.embed_images):
        one, many = embed(images, batch_size=1), embed(images, batch_size=32)
        assert one.shape[0] == 32 and one.dtype == torch.float32
        assert (one - many).abs().max() < 1e-5
        torch.testing.assert_close(one.norm(dim=-1), torch.ones(32))
        assert (one @ one.T - torch.eye(32)).max() < 0.9999, "images differ"
    prompts = [f"a {'very ' * number}old dog" for number in range(8)]
    one, many = clip.embed_prompts(prompts, batch_size=1), clip.embed_prompts(prompts, batch_size=8)
    assert (one - many).abs().max() < 1e-5 and (one[0] - one[1]).abs().max() > 1e-3


def test_dino_is_the_class_token_of_a_plain_vit(dino, tmp_path):
    image = Image.fromarray(noise(60, 45))
    weights = {name: tensor.double() for name, tensor in dino.model.state_dict().items()}

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def key(*parts):
        found = [name for name in weights if name.endswith("weight") and all(part in name for part in parts)]
        assert len(found) == 1, (parts, list(weights))
        return found[0].removesuffix(".weight")

    pixels = dino.preprocess(image).double()
    patches = pixels.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).reshape(16, 3 * 64)
    kernel = key("projection")
    x = patches @ weights[f"{kernel}.weight"].reshape(32, -1).T + weights[f"{kernel}.bias"]
    x = torch.cat([weights["embeddings.cls_token"][0], x]) + weights["embeddings.position_embeddings"][0]
    for layer in range(2):
        here = f".{layer}."
        y = norm(x, key(here, "layernorm_before"))
        attention = [n for n in weights if here in n and "attention" in n and n.endswith("weight")]
        assert len(attention) == 4
        names = [key(here, "attention", part) for part in _attention_names(attention)]
        q, k, v = (linear(y, name).view(17, 4, 8).transpose(0, 1) for name in names[:3])
        mixed = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v
        x = x + linear(mixed.transpose(0, 1).reshape(17, 32), names[3])
        y = norm(x, key(here, "layernorm_after"))
        first, second = _feed_forward_names([n for n in weights if here in n])
        y = linear(y, first)
        x = x + linear(0.5 * y * (1 + torch.erf(y / 2**0.5)), second)
    expected = norm(x, "layernorm")[0]
    result = dino.embed_images([image])[0]
    torch.testing.assert_close(result.double(), expected / expected.norm(), atol=1e-5, rtol=0)


def _attention_names(names):
    """The parts of the names of q, k, v and output, in that order, in old and new transformers."""
    if any("q_proj" in name for name in names):
        return ["q_proj", "k_proj", "v_proj", "o_proj"]
    return ["query", "key", "value", "attention.output.dense"]


def _feed_forward_names(names):
    stems = {name.removesuffix(".weight") for name in names if name.endswith("weight") and "attention" not in name}
    stems = {stem for stem in stems if "norm" not in stem}
    assert len(stems) == 2
    return sorted(stems)  # fc1, fc2; intermediate.dense, output.dense


def test_clip_is_its_own_projected_embedding(clip):
    images = [Image.fromarray(noise(40, 40, seed=seed)) for seed in range(3)]
    prompts = ["a dog", "a dog on the beach", "a red teapot"]
    tokens = clip.tokenizer(prompts, padding=True, return_tensors="pt")
    pixels = torch.stack([clip.preprocess(image) for image in images])
    with torch.inference_mode():
        whole = clip.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels)
    torch.testing.assert_close(clip.embed_images(images), whole.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(clip.embed_prompts(prompts), whole.text_embeds, atol=1e-5, rtol=0)


def test_a_prompt_that_clip_cannot_read_whole_is_refused(tmp_path):
    clip = load_clip(save_tiny_clip(tmp_path / "clip", max_length=8))
    with pytest.raises(ValueError, match="tokens, CLIP reads 8: 'a very long prompt'"):
        clip.embed_prompts(["a dog", "a very long prompt"])


def test_models_that_are_missing_or_not_whole_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no model there"):
        load_dino(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"HF_HUB_OFFLINE is set.*https://huggingface.co/facebook/none-such"):
        load_dino("facebook/none-such")
    folder = save_tiny_dino(tmp_path / "dino")
    tensors = load_file(folder / "model.safetensors")
    del tensors["layernorm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 weights are missing, such as layernorm.weight"):
        load_dino(folder)
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="cannot be loaded as ViTModel"):
        load_dino(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        model_identity(folder)


def test_identity_is_of_content_not_of_place(tmp_path):
    folder = save_tiny_clip(tmp_path / "clip")
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert model_identity(folder) == model_identity(copy) == load_clip(copy).identity
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"logit_scale_init_value": 1.0}))
    assert model_identity(folder) != model_identity(copy)
    assert model_identity(folder) != model_identity(save_tiny_clip(tmp_path / "other", seed=1))
