"""The miniature benchmark: DreamBooth's layout, read by the code that reads DreamBooth; held-out and hard subjects."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamcache.dreambooth.cases import load_benchmark
from flows.evaluation_plans import NO_DRAWING
from miniature import grammar
from miniature.dreambooth import LIVE_PROMPTS, OBJECT_PROMPTS, choose_subjects, draw_images, write_benchmark
from miniature.subjects import CLASSES, LIVE_CLASSES
from miniature.world import is_held_out_seed

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_benchmark(tmp_path_factory.mktemp("benchmark") / "dreambooth", subjects=5, images=2)


def test_the_benchmark_s_own_code_reads_it(folder):
    benchmark = load_benchmark(folder)
    assert benchmark.digests == "folder" and benchmark.name == "dreambooth-miniature"
    assert [subject.name for subject in benchmark.subjects] == ["cat_0", "cat_1", "cat_2", "dog_0", "dog_1"]
    assert len(benchmark.images) == 10 and len(benchmark.cases(images_per_prompt=1)) == 5 * 25
    first, second, third = benchmark.subjects[:3]
    assert first.palette_group == second.palette_group is not None and third.palette_group is None
    assert benchmark.wrong_reference(first) == third
    assert benchmark.prompts(first)[0] == "a cat in the jungle"
    for image in benchmark.images:
        with Image.open(image) as picture, Image.open(image.with_suffix(".mask.png")) as mask:
            assert picture.size == mask.size == (128, 128) and mask.mode == "L"
            assert 0.05 < (np.asarray(mask) >= 128).mean() < 0.6


def test_thirty_subjects_as_dreambooth_has_them():
    subjects = choose_subjects(30)
    assert sum(subject.live for subject in subjects) == 9
    assert len({subject.name for subject in subjects}) == len({subject.instance for subject in subjects}) == 30
    assert all(is_held_out_seed(subject.seed) for subject in subjects)
    classes = [subject.instance.class_name for subject in subjects]
    assert all(classes.count(name) >= 2 for name in classes), "a wrong reference of the same class"
    hard = [subject for subject in subjects if subject.palette_group]
    assert len(hard) == 12
    for one, other in zip(hard[::2], hard[1::2], strict=True):
        assert one.palette_group == other.palette_group
        assert one.instance.palette == other.instance.palette
        assert one.instance.class_name == other.instance.class_name
        assert (one.instance.pattern, one.instance.proportions) != (other.instance.pattern, other.instance.proportions)
    assert choose_subjects(100)[:30] == subjects


def test_images_show_the_subject_alone_in_different_places():
    scenes = draw_images(choose_subjects(1)[0], 5)
    assert len({scene.place for scene in scenes}) == 5 and len({scene.instance for scene in scenes}) == 1
    assert all(scene.second is None and scene.action == "standing" for scene in scenes)
    assert (scenes[0].time, scenes[0].weather) == ("day", "clear")


def test_prompts_say_only_what_the_world_draws():
    assert len(set(OBJECT_PROMPTS)) == len(set(LIVE_PROMPTS)) == 25
    extras = "|".join(grammar.EXTRAS)
    places = "|".join(grammar.taxonomy()["places"])
    sizes = "|".join(word for words in grammar.SIZE_WORDS.values() for word in words)
    others = "|".join(name for name in CLASSES if name not in LIVE_CLASSES)
    beside = "|".join(grammar.BESIDE)
    form = rf"a (({sizes}) )?\{{0\}} \{{1\}}( ({extras}))?( ({beside}) a ({others}))? ({places})( ({extras}))?"
    for prompt in (*OBJECT_PROMPTS, *LIVE_PROMPTS):
        assert re.fullmatch(form, prompt), prompt


def test_a_recipe_has_the_code_that_draws_it():
    code = "import sys, miniature.dreambooth; print(*(name for name in sys.modules if name.startswith('miniature.')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    drawing = {f"{name.removeprefix('miniature.')}.py" for name in done.stdout.split()}
    files = {path.name for path in (ROOT / "miniature").glob("*.py")} - {"__init__.py"}
    assert drawing == files - {*NO_DRAWING} and files >= {*NO_DRAWING}


def test_whole_or_not_at_all(folder, tmp_path):
    again = tmp_path / "again"
    (tmp_path / ".again.partial" / "cat_0").mkdir(parents=True)  # A writer was killed here.
    write_benchmark(again, subjects=5, images=2)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert all((folder / file).read_bytes() == (again / file).read_bytes() for file in files)
    with pytest.raises(FileExistsError, match="remove it"):
        write_benchmark(again)
    for numbers in ({"subjects": 0}, {"images": 0}, {"images": 99}):
        with pytest.raises(ValueError, match="ask for"):
            write_benchmark(tmp_path / "none", **numbers)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_the_command_names_what_is_wrong_in_one_line(folder):
    command = [sys.executable, "-m", "miniature.dreambooth", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2 and "exists: remove it" in result.stderr and "Traceback" not in result.stderr
