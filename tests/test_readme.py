"""README.md and its fellows at their word: what they name exists, and what they show runs.

`make test` compares every command, option, setting and import with what there is. `make readme` also runs the blocks,
in their order and in one folder, as a reader would: with the miniature's models, the profile's sizes made small. Left
out are lines of `make`, since a target is what runs them, and blocks that say why before them (see `readme_blocks`).
"""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from readme_blocks import DOCUMENTS, PROGRAMS, ROOT, Block, blocks, read, spans, words
from readme_checks import check_command, check_help, check_python, check_span

BLOCKS = [block for document in DOCUMENTS for block in blocks(document, read(document))]
COMMANDS = [pair for block in BLOCKS for pair in block.commands()]
PYTHON = [block for block in BLOCKS if block.language == "python"]
TO_RUN = [block for block in BLOCKS if not block.only_checked and not block.is_text]

# What the Python blocks take as given, and by what they are run here.
GIVEN = """
from PIL import Image
image, mask = Image.open("teapot.jpg"), Image.open("teapot.mask.png")
cutout = image.copy()
cutout.putalpha(mask)
"""
INSTEAD = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": str(ROOT / "miniature" / "checkpoints" / "stable-diffusion"),
    'device="cuda"': 'device="cpu"',
}


def at(value: object) -> str:
    return value.place if isinstance(value, Block) else " ".join(str(value).split())[:60]


def test_every_block_is_accounted_for() -> None:
    for block in BLOCKS:
        assert re.fullmatch(r"|text|with the miniature|only checked: .{10,}", block.comment), at(block)
        for place, line in block.commands():
            assert words(line)[0] in PROGRAMS, f"{place}: neither a command nor marked as text: {line}"
    assert len(COMMANDS) > 40 and len(PYTHON) > 1 and len(TO_RUN) > 10


@pytest.mark.parametrize(("place", "command"), COMMANDS, ids=at)
def test_commands_name_what_exists(place: str, command: str) -> None:
    check_command(command)


@pytest.mark.parametrize("block", PYTHON, ids=at)
def test_python_imports_what_exists(block: Block) -> None:
    check_python(block.text)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_sentences_name_what_exists(document: str) -> None:
    wrong = []
    for place, span in spans(document, read(document)):
        try:
            check_span(span)
        except Exception as error:
            wrong.append(f"{place}: `{span}`: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        "dreamcache run --runs runs/mine",
        "dreamcache rum --run runs/mine",
        "dreamcache run --set images.guidence_scale=5.0",
        "dreamcache run --set images.steps=many",
        "dreamcache personalize dog.jpg",
        "dreamcache import-dataset downloads --layout author --run runs/a",
        "make demos",
        "python -m benchmarks.sample",
        "prefect deployment run dreamcache-pipeline/mini",
        "prefect deployment run train-adapters/full --param settings='{\"training.step\": 4}'",
        "prefect deployment run train-adapters/full --param runs=here",
    ],
)
def test_what_does_not_exist_is_noticed(wrong: str) -> None:
    with pytest.raises(
        Exception, match=r"(?i)no such option|there is no|invalid|missing|no rule|no parameter|integer|not one of"
    ):
        check_command(wrong)


@pytest.mark.parametrize("wrong", ["--sets", "images.step", "--set backbones=x", "dreamcache verify x --repairs"])
def test_sentences_that_name_what_does_not_exist_are_noticed(wrong: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such option|option|there is no setting"):
        check_span(wrong)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    """A document's links and pictures that are not on the web are files, and what follows # one of their headings."""
    folder = (ROOT / document).parent
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", read(document)) if "//" not in target]
    wrong = []
    for target in targets:
        name, _, heading = target.partition("#")
        file = folder / name if name else ROOT / document
        headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M) if heading else []
        anchors = [re.sub(r"[^\w -]", "", found).lower().replace(" ", "-") for found in headings]
        if not file.exists() or (heading and heading not in anchors):
            wrong.append(target)
    assert targets and not wrong, wrong


def test_blocks_are_found_where_markdown_has_them() -> None:
    text = (
        "Words\n    no block\n\n<!-- text -->\n\n    a -> b\n\n    c\n\n1. Item:\n\n       make demo\n\n   words\n\n"
        "       $ dreamcache verify x   # says\n       fine\n       ...\n\n```python\nimport os\n```\n"
    )
    found = blocks("README.md", text)
    assert [(block.line, block.language, block.comment) for block in found] == [
        (6, "", "text"), (12, "", ""), (16, "", ""), (21, "python", ""),
    ]  # fmt: skip
    assert found[0].text == "a -> b\n\nc" and found[0].commands() == []
    assert found[2].commands() == [("README.md:16", "dreamcache verify x   # says")] and found[2].printed() == ["fine"]
    assert words("A=1 .venv/bin/dreamcache verify 'x y'  # z") == ["dreamcache", "verify", "x y"]


@pytest.mark.readme
@pytest.mark.parametrize(
    ("place", "command"), [pair for pair in COMMANDS if words(pair[1])[0] in ("python", "torchrun", "prefect")], ids=at
)
def test_other_programs_know_their_options(place: str, command: str) -> None:
    check_help(command)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder: the programs of the environment, photos, and another dataset in the authors' layout."""
    from miniature.world import make_scene

    place = tmp_path_factory.mktemp("reader")
    programs = place / ".venv" / "bin"
    programs.mkdir(parents=True)
    small = f"{sys.executable} {Path(__file__).with_name('small_dreamcache.py')}"
    for name, started in (("dreamcache", small), ("python", sys.executable)):
        (programs / name).write_text(f'#!/bin/sh\nexec {started} "$@"\n')
        (programs / name).chmod(stat.S_IRWXU)
    for seed, noun in enumerate(("dog", "teapot")):
        scene = make_scene(10**9 + seed, class_name=noun, second=False, size=256)
        scene.image.save(place / f"{noun}.jpg", quality=95)
        Image.fromarray(scene.mask).save(place / f"{noun}.mask.png")
    for number in range(6):
        scene = make_scene(2 * 10**9 + number)
        item = place / "downloads" / "train" / scene.class_name
        item.mkdir(parents=True, exist_ok=True)
        scene.image.save(item / f"{number}_generation.png")
        Image.fromarray(scene.mask).save(item / f"{number}_mask.png")
        (item / f"{number}_caption.txt").write_text(scene.caption)
    return place


@pytest.mark.readme
@pytest.mark.parametrize("block", TO_RUN, ids=at)
def test_blocks_run(folder: Path, block: Block) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{folder}/.venv/bin:{os.environ['PATH']}"}
    if block.language == "python":
        source = GIVEN + block.text
        for shown, here in INSTEAD.items():
            source = source.replace(shown, here)
        command = ["python", "-c", source]
    else:
        lines = [line for _, line in block.commands() if words(line)[0] != "make"]
        command = ["bash", "-euxc", "\n".join(lines)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{at(block)}\n{done.stdout}\n{done.stderr}"
    for line in block.printed():
        assert line in done.stdout, f"{at(block)} shows {line!r}, and this was printed:\n{done.stdout}"
