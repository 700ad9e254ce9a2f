"""The drawn world: same seed, same scene; masks, boxes and captions agree with what is drawn."""

import hashlib
import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from miniature import grammar, world
from miniature.places import PHRASES, PLACES, TIMES, WEATHERS, draw_place
from miniature.subjects import CLASSES, LIVE_CLASSES, sample_instance
from miniature.train.data import pool_scene
from miniature.world import make_scene, mask_box

LOOKS = (
    "red orange yellow green blue purple violet pink brown black white grey gray teal cyan magenta gold silver beige "
    "striped stripes dotted dots spotted checked checkered plaid star stars hat crown bow flower scarf flag"
).split()


@pytest.fixture(scope="module")
def scenes() -> list[world.Scene]:
    return [make_scene(seed) for seed in range(300)]


def digest(seed: int) -> str:
    scene = make_scene(seed)
    return hashlib.sha256(scene.image.tobytes() + scene.mask.tobytes() + scene.caption.encode()).hexdigest()


def test_same_seed_same_bytes_in_another_process():
    program = "from tests.test_miniature_world import digest; print(digest(12), digest(10**9 + 5))"
    command = [sys.executable, "-c", program]
    root = Path(__file__).parents[1]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root).stdout.split()
    assert printed == [digest(12), digest(10**9 + 5)]
    assert len(set(printed)) == 2


def test_images_masks_and_boxes_agree(scenes):
    for scene in scenes:
        assert scene.image.mode == "RGB" and scene.image.size == (128, 128)
        assert scene.mask.shape == (128, 128) and scene.mask.dtype == np.uint8
        x0, y0, x1, y1 = scene.box
        assert scene.box == mask_box(scene.mask)
        assert min(x0, y0) >= 4 and max(x1, y1) <= 124
        assert 0.42 * 128 <= max(x1 - x0, y1 - y0) <= 121
        assert ((scene.mask > 0) & (scene.mask < 255)).any(), "soft edges"
        inside = scene.mask[int(y0) : int(y1), int(x0) : int(x1)]
        assert (inside >= 128).sum() == (scene.mask >= 128).sum()


def test_the_mask_covers_what_the_instance_changes():
    for seed in range(20):
        scene = make_scene(seed, class_name="can", action="standing", second=False, weather="clear")
        twin_instance = sample_instance("can", np.random.default_rng(seed))
        twin = make_scene(seed, instance=twin_instance, action="standing", second=False, weather="clear")
        changed = np.abs(np.asarray(scene.image, int) - np.asarray(twin.image, int)).max(axis=2) > 60
        assert not (changed & (scene.mask == 0) & (twin.mask == 0)).any()
        assert (changed & (scene.mask > 0)).sum() > 0.15 * (scene.mask > 0).sum()
        assert twin.place == scene.place and twin.phrase == scene.phrase


def test_second_objects(scenes):
    seconds = [scene for scene in scenes if scene.second is not None]
    assert 0.22 < len(seconds) / len(scenes) < 0.38
    mentioned = 0
    for scene in seconds:
        other = scene.second
        assert other.class_name != scene.class_name and other.instance.class_name == other.class_name
        assert other.box == mask_box(other.mask)
        area = float(((scene.mask / 255.0) * (other.mask / 255.0)).max())
        assert area <= 0.26, "a pixel is the subject's or the other object's"
        assert max(other.box[2] - other.box[0], other.box[3] - other.box[1]) >= 16
        assert min(other.box[:2]) >= 3 and max(other.box[2:]) <= 125
        mentioned += any(f"{beside} " in scene.caption for beside in grammar.BESIDE)
    assert 0 < mentioned < len(seconds)


def test_captions_name_class_and_place_and_never_looks(scenes):
    for scene in scenes:
        assert scene.class_name in scene.caption
        assert scene.phrase in PHRASES[scene.place] and scene.phrase in scene.caption
        assert not set(re.findall(r"[a-z]+", scene.caption)) & set(LOOKS)
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", scene.caption)
        for name, phrases in (
            (scene.time, grammar.TIME_PHRASES),
            (scene.weather, grammar.WEATHER_PHRASES),
            (scene.action, grammar.ACTION_PHRASES),
        ):
            said = [phrase for choices in phrases.values() for phrase in choices if phrase in scene.caption]
            assert all(phrase in phrases[name] for phrase in said)
            assert bool(said) == bool(phrases[name]), "what is drawn is said"


def test_chance_is_used(scenes):
    for field in ("time", "weather", "action", "size_word"):
        names = [getattr(scene, field) for scene in scenes]
        plain = max(names.count(name) for name in set(names))
        assert 0.7 < plain / len(names) < 0.88
    assert {scene.place for scene in scenes} == set(PLACES)
    assert {scene.class_name for scene in scenes} == set(CLASSES)


def test_an_override_changes_nothing_else():
    scene, night = make_scene(7, time="day"), make_scene(7, time="night")
    assert (scene.mask == night.mask).all() and scene.instance == night.instance
    assert scene.image.tobytes() != night.image.tobytes()
    with pytest.raises(ValueError, match="no 'attic'"):
        make_scene(7, place="attic")


def test_places_times_and_weathers_look_different():
    small = {}
    for place, time, weather in itertools.product(PLACES, TIMES, WEATHERS):
        picture, ground = draw_place(place, np.random.default_rng(3), time=time, weather=weather, size=64)
        assert picture.size == (64, 64) and 0.3 < ground < 0.85
        small[place, time, weather] = np.asarray(picture, float)
    for place in PLACES:
        day = small[place, "day", "clear"]
        for time, weather in itertools.product(TIMES, WEATHERS):
            if (time, weather) != ("day", "clear"):
                assert np.abs(small[place, time, weather] - day).mean() > 4
    with pytest.raises(ValueError, match="no 'noon'"):
        draw_place("beach", np.random.default_rng(0), time="noon")


def test_taxonomy_and_vocabulary(scenes):
    taxonomy = grammar.taxonomy()
    assert len(taxonomy["classes"]) >= 16 and len(PLACES) >= 14 and set(LIVE_CLASSES) < set(CLASSES)
    known = set(re.findall(r"[a-z]+", " ".join(grammar.vocabulary_text())))
    for scene in scenes:
        assert set(re.findall(r"[a-z]+", scene.caption)) <= known
    parts = grammar.CaptionParts("cat", "on a beach")
    rng = np.random.default_rng(0)
    for extra in grammar.EXTRAS:
        assert extra in grammar.write_caption(grammar.say_extra(parts, extra), rng)
    with pytest.raises(ValueError, match="no extra"):
        grammar.say_extra(parts, "on fire")


def test_held_out_seeds():
    assert not world.is_held_out_seed(world.TRAINING_SEEDS - 1)
    with pytest.raises(ValueError, match="not for training"):
        pool_scene(world.TRAINING_SEEDS)
    assert world.is_held_out_seed(world.HELD_OUT_SEEDS)
    training = {make_scene(seed).instance for seed in range(40)}
    held_out = {make_scene(world.HELD_OUT_SEEDS + seed).instance for seed in range(40)}
    assert not training & held_out
