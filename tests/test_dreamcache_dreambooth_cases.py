"""The benchmark as data: DreamBooth's own counts, and folders that are missing, altered or malformed."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tiny_embedders import prompts_and_classes, write_tiny_benchmark

from dreamcache.dreambooth.cases import PACKAGED, PACKAGED_DIGESTS, case_seed, load_benchmark, spread
from dreamcache.dreambooth.layout import read_digests, read_prompts_and_classes, read_table

LIVE = ["cat", "cat2", "dog", "dog2", "dog3", "dog5", "dog6", "dog7", "dog8"]


@pytest.fixture(scope="module")
def dreambooth(tmp_path_factory) -> Path:
    """A folder with DreamBooth's subjects and file names, its images of one pixel each."""
    folder = tmp_path_factory.mktemp("benchmark") / "dataset"
    for number, file in enumerate(read_digests(PACKAGED / "original-sha256.txt")):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (1, 1), (number, 0, 0)).save(folder / file)
    (folder / "references_and_licenses.txt").write_text("not read")
    table = read_table(PACKAGED / "subjects.json")
    lines = {
        kind: [
            "'" + prompt.replace("{class}", "{0} {1}") + "'.format(unique_token, class_token)"
            for prompt in table["prompts"][kind]
        ]
        for kind in ("object", "live")
    }
    classes = {entry["name"]: entry["class"] for entry in table["subjects"]}
    (folder / "prompts_and_classes.txt").write_text(prompts_and_classes(classes, lines["object"], lines["live"]))
    return folder


@pytest.fixture
def tiny(tmp_path) -> Path:
    return write_tiny_benchmark(tmp_path / "tiny")


def test_dreambooth_s_counts(dreambooth):
    benchmark = load_benchmark(dreambooth, verify=False)
    assert (benchmark.name, benchmark.digests) == ("dreambooth", "none")
    assert len(benchmark.subjects) == 30 and len(benchmark.images) == 158
    assert [subject.name for subject in benchmark.subjects if subject.live] == LIVE
    assert len(benchmark.object_prompts) == len(benchmark.live_prompts) == 25
    assert len(set(benchmark.object_prompts)) == len(set(benchmark.live_prompts)) == 25
    assert len(set(benchmark.object_prompts) & set(benchmark.live_prompts)) == 15
    cases = benchmark.cases()
    assert len(cases) == len({case.key for case in cases}) == len({case.seed for case in cases}) == 3000
    references = {f"{subject.name}/{subject.reference.stem}" for subject in benchmark.subjects}
    assert len(references) == 30 and {"cat/04", "dog5/00", "vase/02", "pink_sunglasses/04"} <= references
    prompts = {case.prompt for case in cases}
    assert {
        "a backpack in the jungle",
        "a cat wearing a santa hat",
        "a stuffed animal floating on top of water",
    } <= prompts
    assert not any("{" in prompt or "  " in prompt for prompt in prompts)


def test_packaged_digests_name_the_same_158_files():
    original, scaled = (read_digests(PACKAGED / file) for file in PACKAGED_DIGESTS.values())
    assert original.keys() == scaled.keys() and len(original) == 158
    assert len({*original.values(), *scaled.values()}) == 316


def test_prompts_come_from_the_package_where_the_file_is_missing(dreambooth, tmp_path):
    folder = shutil.copytree(dreambooth, tmp_path / "copy")
    (folder / "prompts_and_classes.txt").unlink()
    assert load_benchmark(folder, verify=False).cases() == load_benchmark(dreambooth, verify=False).cases()


def test_other_images_than_dreambooth_s_are_refused_with_their_number(dreambooth):
    with pytest.raises(ValueError, match=r"158 of 158 images altered, .*backpack/00.jpg \(sha256 .* and 155 more"):
        load_benchmark(dreambooth)


def test_missing_and_surplus_images_are_named(dreambooth, tmp_path):
    folder = shutil.copytree(dreambooth, tmp_path / "copy")
    shutil.copy(folder / "cat/00.jpg", folder / "cat/09.jpg")
    with pytest.raises(ValueError, match="1 images too many, not of the benchmark: cat/09.jpg"):
        load_benchmark(folder, verify=False)
    (folder / "dog6/03.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 158 images missing: dog6/03.jpg"):
        load_benchmark(folder, verify=False)
    shutil.rmtree(folder / "vase")
    with pytest.raises(FileNotFoundError, match="1 of 30 subject folders missing: vase"):
        load_benchmark(folder, verify=False)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_benchmark(tmp_path / "elsewhere")


def test_a_folder_of_its_own_table(tiny):
    benchmark = load_benchmark(tiny)
    assert [subject.name for subject in benchmark.subjects] == ["cup_0", "cup_1", "cup_2", "cat"]
    assert benchmark.by_name["cat"].reference == tiny / "cat/02.png"
    assert len(benchmark.images) == 12, "masks are no images"
    cat = benchmark.by_name["cat"]
    assert benchmark.prompts(cat) == [f"a tabby cat wearing hat {number}" for number in range(3)]
    assert cat.mask(cat.images[1]) == tiny / "cat/01.mask.png"
    (tiny / "cat/01.mask.png").unlink()
    assert cat.mask(cat.images[1]) is None
    assert cat.image_key(cat.images[1]) == "cat-01"


def test_own_digests_are_held(tiny):
    images = [path for path in sorted(tiny.glob("*/*.png")) if not path.name.endswith(".mask.png")]
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(tiny)}\n" for path in images]
    (tiny / "sha256.txt").write_text("".join(lines))
    assert load_benchmark(tiny).digests == "folder"
    Image.new("RGB", (48, 48)).save(tiny / "cup_1/00.png")
    with pytest.raises(ValueError, match="1 of 12 images altered, by the digests of the folder images: cup_1/00.png"):
        load_benchmark(tiny)
    assert load_benchmark(tiny, verify=False).digests == "none"
    (tiny / "sha256.txt").write_text("what is this\n")
    with pytest.raises(ValueError, match="not a line of sha256sum: 'what is this'"):
        load_benchmark(tiny)


def test_the_wrong_reference_is_of_the_class_and_shares_no_palette(tiny, dreambooth):
    benchmark = load_benchmark(tiny)
    wrong = {subject.name: benchmark.wrong_reference(subject).name for subject in benchmark.subjects}
    assert wrong == {"cup_0": "cup_2", "cup_1": "cup_2", "cup_2": "cup_0", "cat": "cup_0"}
    cup, twin, _, cat = benchmark.subjects
    dog, stranger = replace(cat, name="dog", class_word="dog"), replace(cup, name="mug", class_word="mug")
    for others, expected in (
        ((twin, dog), twin),  # of the class, though of its palette
        ((dog, replace(stranger, palette_group=cup.palette_group)), stranger),  # of the kind, live or object
        ((dog,), dog),
    ):
        assert replace(benchmark, subjects=(cup, *others)).wrong_reference(cup).name == expected.name
    first, second = replace(cat, name="a"), replace(cat, name="b", palette_group="red")
    cats = replace(benchmark, subjects=(cat, first, second))
    chosen = [cats.wrong_reference(subject) for subject in cats.subjects]
    assert chosen == [first, second, cat], "the next in the table; without a palette none is shared"
    with pytest.raises(ValueError, match="the only subject is cat; a wrong reference needs a second"):
        replace(benchmark, subjects=(cat,)).wrong_reference(cat)
    benchmark = load_benchmark(dreambooth, verify=False)
    for subject in benchmark.subjects:
        other = benchmark.wrong_reference(subject)
        alone = sum(one.class_word == subject.class_word for one in benchmark.subjects) == 1
        assert other != subject and (alone or other.class_word == subject.class_word) and other.live == subject.live


def test_limits_are_spread_and_seeds_depend_on_the_case_alone(tiny):
    benchmark = load_benchmark(tiny)
    all_cases = {case.key: case for case in benchmark.cases(images_per_prompt=2, seed=3)}
    few = benchmark.cases(images_per_prompt=1, seed=3, subjects=2, prompts=2)
    assert [case.key for case in few] == ["cup_0-00-0", "cup_0-01-0", "cup_2-00-0", "cup_2-01-0"]
    assert all(all_cases[case.key] == case for case in few)
    assert benchmark.cases(seed=4)[0].seed != benchmark.cases(seed=3)[0].seed
    assert case_seed(0, "backpack-00-0") == int(hashlib.sha256(b"0/backpack-00-0").hexdigest()[:8], 16)
    assert spread(range(30), 4) == [0, 7, 15, 22] and spread(range(3), 9) == [0, 1, 2]
    with pytest.raises(ValueError, match="prompts is 0"):
        benchmark.cases(prompts=0)


def test_malformed_prompts_and_tables_are_named(tiny):
    file = tiny / "prompts_and_classes.txt"
    good = file.read_text()
    for bad, message in [
        (good.replace(".format(unique_token, class_token)", ".upper()", 1), r":\d+: cannot read .*upper"),
        (good.replace("Live Subject Prompts", "Prompts"), "needs the sections Classes, Object Prompts and Live"),
        (good.replace("cat,tabby cat", "cat,lion"), "classes differ from the subject table for cat"),
        (good.replace("cup_2,cup\n", ""), "classes differ from the subject table for cup_2"),
    ]:
        file.write_text(bad)
        with pytest.raises(ValueError, match=message):
            load_benchmark(tiny)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"prompts_and_classes.txt is missing"):
        load_benchmark(tiny)
    file.write_text(good)
    table = json.loads((tiny / "subjects.json").read_text())
    for change, message in [
        ({"name": "../cat"}, "a name is"),
        ({"colour": "red"}, "colour"),
        ({"live": "yes"}, "live is true or false"),
        ({"reference": "../cup_0/00.png"}, "reference a file of its folder"),
    ]:
        entries = [*table["subjects"][:-1], table["subjects"][-1] | change]
        (tiny / "subjects.json").write_text(json.dumps(table | {"subjects": entries}))
        with pytest.raises(ValueError, match=message):
            load_benchmark(tiny)
    other_prompts = {"object": ["a {class}"], "live": ["a {class}"]}
    (tiny / "subjects.json").write_text(json.dumps(table | {"prompts": other_prompts}))
    with pytest.raises(ValueError, match="the prompts differ from those of the subject table"):
        load_benchmark(tiny)
    (tiny / "subjects.json").write_text('{"benchmark": "x"}')
    with pytest.raises(ValueError, match="'subjects' is missing"):
        load_benchmark(tiny)


@pytest.mark.parametrize(
    "prompts", [{"object": ["a {class}"]}, {"object": ["a {class}"], "live": "a {class}"}, ["a {class}"], {}]
)
def test_a_table_s_prompts_are_two_lists_of_texts(tiny, prompts):
    (tiny / "prompts_and_classes.txt").unlink()
    table = json.loads((tiny / "subjects.json").read_text())
    (tiny / "subjects.json").write_text(json.dumps(table | {"prompts": prompts}))
    with pytest.raises(ValueError, match=r"subjects.json: prompts are .* two lists of texts"):
        load_benchmark(tiny)


def test_images_that_cannot_be_records_are_to_be_renamed(tiny):
    shutil.copy(tiny / "cat/00.png", tiny / "cat/00.JPG")
    with pytest.raises(ValueError, match="rename images .* alone: cat/00.JPG and cat/00.png$"):
        load_benchmark(tiny)
    (tiny / "cat/00.JPG").rename(tiny / "cat/IMG_0001.JPG")
    (tiny / "cup_1/01.png").rename(tiny / "cup_1/my photo.png")
    with pytest.raises(ValueError, match="rename 2 images, .*: cat/IMG_0001.JPG, cup_1/my photo.png$"):
        load_benchmark(tiny)
    (tiny / "cat/IMG_0001.JPG").rename(tiny / "cat/img_0001.JPG")
    (tiny / "cup_1/my photo.png").rename(tiny / "cup_1/my-photo.png")
    assert len(load_benchmark(tiny).images) == 13


def test_reading_both_quotes_and_a_last_line_without_comma(tmp_path):
    file = tmp_path / "prompts_and_classes.txt"
    file.write_text(
        "Classes\n\nsubject_name,class\nowl,owl\n\nPrompts\n\nObject Prompts\n\nprompt_list = [\n"
        '"a {0} {1} at the cat\'s door".format(unique_token, class_token),\n]\n\n'
        "Live Subject Prompts\n\nprompt_list = [\n"
        "'a {0} {1}'.format(unique_token, class_token)\n]\n"
    )
    classes, prompts = read_prompts_and_classes(file)
    assert classes == {"owl": "owl"} and prompts == {"object": ["a {class} at the cat's door"], "live": ["a {class}"]}


def test_cases_and_plans_need_no_torch():
    code = (
        "import sys, dreamcache.dreambooth.evaluation, dreamcache.dreambooth.scoring; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
