"""The report's pictures of a small evaluation: commands that make them again, for any adapters."""

import io
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from in_process import run_command
from PIL import Image
from test_dreamcache_adapters import moved_adapters
from tiny_profile import tiny_settings

from dreamcache import load_backbone
from flows.evaluate_adapters import evaluate_adapters
from flows.evaluation_plans import adapters_folder
from flows.profiles import Profile, load_profile
from flows.report_pictures import gallery
from shards.files import read_tar_records

pytestmark = pytest.mark.usefixtures("tiny_server")
Made = tuple[Profile, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """An evaluation of adapters that read the noun, on references with masks beside them."""
    folder = tmp_path_factory.mktemp("pictures")
    settings = {
        **tiny_settings(), "compare_with": None, "evaluation.prompts": 1,
        "evaluation.masked_metrics": False, "sweep.image_scales": [], "sweep.text_scales": [],
    }  # fmt: skip
    backbone = load_backbone(settings["backbone"])
    adapters = moved_adapters(backbone.unet, cache_prompt="a photo of a {subject}")
    adapters.backbone_identity = backbone.identity
    adapters.save_pretrained(adapters_folder(folder / "run"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("flows.plans.training_step", lambda *_: SimpleNamespace(changes=list))
        evaluate_adapters(run=str(folder / "run"), settings=settings)
        yield load_profile("miniature", settings), folder / "run"


def test_commands_make_pictures_again_of_adapters_that_read_the_noun(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = gallery(*made)
    assert shown is not None
    monkeypatch.chdir(tmp_path)
    commands = dict(part.splitlines() for part in shown["rows"][0]["again"].split("\n\n"))
    for label, stored in (("just trained", "adapters"), ("just trained, wrong reference", "wrong-reference")):
        words = shlex.split(commands[f"# {label}"])
        said = run_command(capsys, words[1:])
        assert said.code == 0, said.err
        ((_, parts),) = read_tar_records(made[1] / "evaluation" / "images" / stored / "00000.tar")
        (again,) = Path(words[words.index("--out") + 1]).glob("00-*.png")
        difference = np.asarray(Image.open(again), dtype=int) - np.asarray(Image.open(io.BytesIO(parts["png"])))
        assert np.abs(difference).max() <= 2
