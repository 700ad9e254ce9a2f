"""One photo in, pictures out, by very small models: files, what they carry, what stays, and every bad input's line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from in_process import run_command
from PIL import Image, ImageDraw
from test_dreamcache_adapters import moved_adapters
from tiny_datagen import save_tiny_owlvit, save_tiny_sam
from tiny_diffusion import save_tiny_stable_diffusion
from transformers import OwlViTForObjectDetection

from dreamcache.adapters import AdapterSet
from dreamcache.backbone import load_backbone
from dreamcache.cache import FeatureCache
from dreamcache.reference import shown_alone
from flows.evaluation_plans import adapters_folder
from flows.picture_commands import _models
from flows.profiles import load_profile, record_configuration

Say = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("personalize")
    save_seeing_owlvit(folder / "owlvit")
    save_tiny_sam(folder / "sam")
    backbone = load_backbone(save_tiny_stable_diffusion(folder / "sd"))
    adapters = moved_adapters(backbone.unet)
    adapters.backbone_identity = backbone.identity
    adapters.save_pretrained(folder / "adapters")
    save_tiny_stable_diffusion(folder / "other", seed=1)
    photo = Image.linear_gradient("L").resize((80, 60)).convert("RGB")
    ImageDraw.Draw(photo).ellipse((20, 10, 60, 50), fill="red")
    photo.save(folder / "photo.png")
    mask = Image.new("L", photo.size)
    ImageDraw.Draw(mask).ellipse((20, 10, 60, 50), fill=255)
    mask.save(folder / "mask.png")
    Image.new("L", photo.size).save(folder / "empty.png")
    Image.new("L", (10, 10), 255).save(folder / "small.png")
    Image.new("RGB", (40, 40), "white").save(folder / "white.png")
    photo.putalpha(mask)
    photo.save(folder / "cutout.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / "torn.png").write_bytes((folder / "photo.png").read_bytes()[:-400])
    return folder


def save_seeing_owlvit(folder: Path) -> None:
    """The tiny OWL-ViT, of whose random boxes few have an area, with one on every patch, scored by the cosine alone."""
    model = OwlViTForObjectDetection.from_pretrained(save_tiny_owlvit(folder))
    for part in (model.box_head.dense2, model.class_head.logit_shift, model.class_head.logit_scale):
        torch.nn.init.zeros_(part.weight)
        torch.nn.init.zeros_(part.bias)
    model.save_pretrained(folder)


@pytest.fixture
def say(made: Path, capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command on the tiny models; returns its code and what it said."""

    def run(name: str, *words: object, sd: str = "sd", adapters: str | None = "adapters") -> tuple[int, str]:
        settings = {
            "backbone": made / sd, "masks.box_model": made / "owlvit", "masks.mask_model": made / "sam",
            "masks.min_stored_score": 0, "gates.min_box_score": 0, "evaluation.sampling.steps": 2,
        }  # fmt: skip
        more = [] if adapters is None else ["--adapters", str(made / adapters)]
        # What a test sets comes later, and holds.
        given = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        heard = run_command(capsys, [name, *given, *more, *map(str, words)])
        # Bars of libraries that were imported before the command could quieten them end in "it/s]".
        lines = [line for line in heard.err.splitlines() if line and "it/s]" not in line]
        assert len(lines) == (heard.code != 0), heard.err
        return heard.code, lines[0] if heard.code else heard.out

    return run


def test_pictures_carry_what_made_them_and_stay(made: Path, say: Say, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prompts = ("a dog!", "the café", "a dog!")  # what is asked for twice is made once
    words = ("personalize", made / "photo.png", *prompts, "--noun", "dog", "--seeds", "3,5,3", "--out", out)
    code, said = say(*words)
    assert code == 0 and "dog found with score" in said, said
    names = ["00-a-dog-3.png", "00-a-dog-5.png", "01-the-caf-3.png", "01-the-caf-5.png"]
    assert sorted(path.name for path in out.iterdir()) == [*names, "cache.safetensors", "sheet.jpg"]
    assert all(str(out / name) in said for name in (*names, "sheet.jpg", "cache.safetensors"))
    last = Image.open(out / names[-1])
    settings = json.loads(last.text["settings"])
    assert (last.size, last.text["prompt"], last.text["seed"]) == ((64, 64), "the café", "5")
    shipped = load_profile("miniature").evaluation.sampling.model_dump()
    assert settings["sampling"] == shipped | {"steps": 2}
    assert settings["adapters"].startswith("sha256:") and settings["reference"]["subject"] == "dog"
    assert str(made) not in last.text["settings"]
    sheet = Image.open(out / "sheet.jpg")
    assert sheet.size == (4 * 260 - 4, 2 * 260 - 4)
    contents = {name: (out / name).read_bytes() for name in names}
    assert len(set(contents.values())) == 4

    (out / names[1]).unlink()  # as if it had been broken off
    times = {name: (out / name).stat().st_mtime_ns for name in names if name != names[1]}
    code, said = say(*words)
    assert code == 0 and said.count("(there already)") == 3
    assert all((out / name).stat().st_mtime_ns == time for name, time in times.items())
    assert {name: (out / name).read_bytes() for name in names} == contents or near(contents[names[1]], out / names[1])

    code, said = say("generate", out / "cache.safetensors", "a dog!", "--seeds", "3", "--out", tmp_path / "again")
    assert code == 0, said
    again = tmp_path / "again" / names[0]
    assert near(contents[names[0]], again) and Image.open(again).text == Image.open(out / names[0]).text
    red = Image.open(tmp_path / "again" / "sheet.jpg").crop((0, 0, 256, 256))
    assert red.tobytes() == Image.open(out / "sheet.jpg").crop((0, 0, 256, 256)).tobytes()

    code, said = say(*words[:-4], "--seeds", "3", "--scale", "6", "--out", out)
    assert code == 0 and "there already" not in said
    assert (out / names[0]).read_bytes() != contents[names[0]] and (out / names[1]).is_file()

    before = {path: path.read_bytes() for path in out.iterdir()}
    code, said = say("personalize", made / "cutout.png", "a dog!", "--seeds", "3", "--out", out)
    assert code == 1 and "no picture of this reference: choose another folder by --out" in said
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_pictures_of_one_colour_are_left_out_and_named(made: Path, say: Say, tmp_path: Path) -> None:
    broken = AdapterSet.from_pretrained(made / "adapters")
    for parameter in broken.parameters():
        parameter.data.fill_(torch.nan)
    broken.save_pretrained(tmp_path / "broken")
    words = ("personalize", made / "cutout.png", "a dog", "--seeds", "3", "--out", tmp_path / "out")
    code, said = say(*words, "--set", "evaluation.sampling.steps=1", adapters=str(tmp_path / "broken"))
    assert code == 1 and "1 of 1 pictures came out of one colour and were left out: " in said, said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sheet.jpg"]


def near(png: bytes, path: Path) -> bool:
    """Whether two pictures are the same up to the rounding of another batch."""
    import io

    import numpy as np

    first, second = (np.asarray(Image.open(source), dtype=int) for source in (io.BytesIO(png), path))
    return bool(abs(first - second).max() <= 2)


def test_a_mask_and_a_cutout_of_it_are_one_reference(made: Path, say: Say, tmp_path: Path) -> None:
    files = [tmp_path / "masked.safetensors", tmp_path / "cutout.safetensors"]
    assert say("cache", made / "photo.png", "--mask", made / "mask.png", "--out", files[0])[0] == 0
    code, said = say("cache", made / "cutout.png", "--noun", "dog", "--out", files[1])
    assert code == 0 and "found" not in said  # what is cut out already is not looked for
    masked, cut = (FeatureCache.load(file) for file in files)
    assert masked.settings["reference"] == cut.settings["reference"]
    assert all((masked.features[name] == tensor).all() for name, tensor in cut.features.items())


def test_a_runs_own_profile_settings_and_adapters_are_used(tmp_path: Path) -> None:
    settings = {"backbone": "a/backbone", "evaluation.sampling.steps": 7}
    record_configuration(tmp_path, load_profile("full", settings))
    chosen, place = _models(None, tmp_path, "theirs", ["evaluation.sampling.guidance_scale=3"])
    assert chosen == load_profile("full", settings | {"evaluation.sampling.guidance_scale": 3.0}) and place == "theirs"
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} has no trained adapters"):
        _models(None, tmp_path, None, None)
    (own := adapters_folder(tmp_path)).mkdir(parents=True)
    (own / "config.json").write_text("{}")
    assert _models(None, tmp_path, None, None) == (load_profile("full", settings), str(own))
    shipped = load_profile("miniature")
    assert _models(None, None, None, None) == (shipped, shipped.compare_with)
    (small := tmp_path / "small").mkdir()
    record_configuration(small, shipped)  # a run's adapters are its own, whatever ships with its profile
    with pytest.raises(FileNotFoundError, match=f"{small} has no trained adapters"):
        _models(None, small, None, None)


def test_on_white_by_the_edge(made: Path) -> None:
    assert shown_alone(Image.open(made / "photo.png")) is None
    assert shown_alone(Image.open(made / "cutout.png")) == "cut out"
    on_white = Image.new("RGB", (40, 40), "white")
    on_white.paste("blue", (15, 20, 30, 40))  # it stands on the lower edge
    assert shown_alone(on_white) == "on white"
    on_white.paste("blue", (0, 20, 40, 40))
    assert shown_alone(on_white) is None


def test_bad_photos_are_one_line_and_write_nothing(made: Path, say: Say, tmp_path: Path) -> None:
    for words, text in (
        ((made / "nothing.png",), "nothing.png: no such image"),
        ((made / "notes.txt",), "not a readable image"),
        ((made / "torn.png", "--noun", "dog"), "torn.png: not a readable image"),
        ((made / "photo.png",), "neither cut out nor on white; name what it shows by --noun"),
        ((made / "white.png",), "white all over, there is no subject"),
        ((made / "photo.png", "--noun", "teapot", "--set", "gates.min_box_score=1.0"), "no teapot found: the best box"),
        ((made / "photo.png", "--noun", "dog", "--set", "masks.min_stored_score=1.0"), "no dog found: not one box"),
        ((made / "photo.png", "--mask", made / "empty.png"), "its mask or alpha channel is empty"),
        ((made / "photo.png", "--mask", made / "small.png"), "small.png is 10 x 10, the photo 80 x 60"),
        ((made / "photo.png", "--mask", made / "none.png"), "none.png: no such image"),
        ((made / "cutout.png", "--scale", "2", "--set", "evaluation.sampling.guidance=joint"), "and no image scale"),
        ((made / "cutout.png", "--seeds", "1,x"), "--seeds '1,x' are not whole numbers"),
        ((made / "cutout.png", "--run", tmp_path, "--profile", "miniature"), f"{tmp_path} has no trained adapters"),
        ((made / "cutout.png", "--profile", "full"), "the profile full ships none and runs/full/training/adapters has"),
        ((made / "cutout.png", "--adapters", made / "sd"), "no adapters in"),
    ):
        own = "adapters" if "--run" not in words and "--profile" not in words else None
        code, said = say("personalize", words[0], "a dog", *words[1:], "--out", tmp_path / "out", adapters=own)
        assert code == 1 and text in said, said
        assert not (tmp_path / "out").exists()
    assert say("personalize", made / "cutout.png", "a dog", "--profile", "minature")[0] == 2
    assert say("personalize", made / "cutout.png", "a dog", "--set", "evaluation.smapling.steps=3")[0] == 2


def test_bad_caches_are_one_line_and_write_nothing(made: Path, say: Say, tmp_path: Path) -> None:
    file = tmp_path / "cutout.safetensors"
    assert say("cache", made / "cutout.png", "--out", file)[0] == 0
    whole = file.read_bytes()
    (tmp_path / "torn.safetensors").write_bytes(whole[:-100])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    backbone = load_backbone(made / "other")
    others = moved_adapters(backbone.unet)
    others.backbone_identity = backbone.identity
    others.save_pretrained(tmp_path / "others")
    changed = {"cache_timestep": 9, "cache_prompt": "a photo", "layers": ("encoder",)}
    late = AdapterSet.for_unet(backbone.unet, backbone_identity=load_backbone(made / "sd").identity, **changed)
    late.save_pretrained(tmp_path / "late")
    for name, more, text in (
        ("none.safetensors", {}, "no feature cache at"),
        ("torn.safetensors", {}, "torn.safetensors is no feature cache"),
        ("empty.safetensors", {}, "empty.safetensors is no feature cache"),
        (made / "adapters" / "adapters.safetensors", {}, "adapters.safetensors is no feature cache"),
        (file, {"sd": "other", "adapters": tmp_path / "others"}, "cached for another backbone than these adapters'"),
        (file, {"sd": "other"}, "these adapters belong to the backbone"),
        (file, {"adapters": tmp_path / "late"}, "cached for another timestep and prompt and layers than"),
    ):
        code, said = say("generate", tmp_path / name, "a dog", "--out", tmp_path / "out", **more)
        assert code == 1 and text in said, said
        assert not (tmp_path / "out").exists()
    assert file.read_bytes() == whole
    code, said = say("cache", made / "cutout.png", "--out", made / "photo.png")
    assert code == 1 and "is not named FILE.safetensors" in said and Image.open(made / "photo.png").size == (80, 60)
