"""The settings as commands show and guard them: the list with meanings, and a run that is of another profile."""

import json
import logging
import os
from pathlib import Path

import pytest
from in_process import run_command
from tiny_triplets import write_tiny_triplets

from flows.cli import app
from flows.lock import locked
from flows.profiles import check_profile, load_profile, record_configuration
from flows.settings import parse_settings
from flows.train_adapters import _tell_of_enlarged


def test_what_the_list_says_of_every_setting_is_what_set_takes(capsys: pytest.CaptureFixture[str]) -> None:
    for profile in ("miniature", "full"):
        _, out, _ = run_command(capsys, ["settings", "--profile", profile])
        lines = [line for line in out.splitlines() if not line.startswith("    ")]
        assert len(lines) > 100 and "images.guidance_scale=3.5" in lines
        assert load_profile(profile, parse_settings(lines)) == load_profile(profile)


def test_words_pick_settings_by_name_or_meaning(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["settings", "Images", "batch", "--set", "images.execution.batch_size=3", "--json"]
    code, out, _ = run_command(capsys, words)
    assert code == 0 and json.loads(out) == {
        "images.execution.batch_size": {
            "value": 3, "meaning": "records at a time; fewer where a GPU's memory does not hold"
        }
    }  # fmt: skip
    assert run_command(capsys, ["settings", "whirl"]) == (
        2, "", "dreamcache: no setting has whirl in its name or meaning\n"
    )  # fmt: skip
    record_configuration(tmp_path, load_profile("miniature", {"training.steps": 77}))
    assert run_command(capsys, ["settings", "training.steps", "--run", str(tmp_path)])[1] == "training.steps=77\n"
    code, out, err = run_command(capsys, ["settings", "--run", str(tmp_path), "--set", "training.steps=78"])
    assert (code, out) == (2, "") and "give one of the two" in err
    code, _, err = run_command(capsys, ["settings", "--run", str(tmp_path / "none")])
    assert code == 2 and "records no settings" in err
    code, out, err = run_command(capsys, ["settings", "--run", str(tmp_path), "--profile", "full"])
    assert (code, out) == (2, "") and "is a run of the profile miniature: leave out --profile" in err
    code, out, err = run_command(capsys, ["settings", "whirl", "--json"])
    assert (code, out) == (2, "") and "no setting has whirl" in err


def test_a_group_changes_what_it_names_alone() -> None:
    one = load_profile("miniature", parse_settings(['training={"steps": 7, "adapters": {"cache_timestep": 9}}']))
    assert one == load_profile("miniature", {"training.steps": 7, "training.adapters.cache_timestep": 9})
    with pytest.raises(ValueError, match="training.stepz: extra inputs are not permitted"):
        load_profile("miniature", {"training": {"stepz": 7}})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--run", ""], "--run"),
        (["merge", "a", "--run", " "], "--run"),
        (["personalize", "a.png", "a cat", "--run", ""], "--run"),
        (["ui", "--port", "99999"], "less than or equal to 65535"),
        (["evaluate", "--rows", "a", "--name", "b"], "leave it out"),
        (["evaluate", "--calibrate", "--name", "b"], "leave it out"),
        (["evaluate", "--rows", "a", "--dataset", "b"], "leave it out"),
    ],
)
def test_an_option_that_means_nothing_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        app(words)
    assert end.value.code == 2 and said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_whose_name_is_a_number_is_a_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run_command(capsys, ["evaluate", "--calibrate", "--dataset", "30", "--run", str(tmp_path)])
    assert code == 1 and "30: no such folder" in err


@pytest.mark.parametrize("command", ["run", "build-dataset", "train-adapters", "evaluate-adapters", "report", "ablate"])
def test_a_run_of_another_profile_is_left_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    record_configuration(tmp_path, load_profile("full"), builds=True)
    before = (tmp_path / "config.json").read_bytes()
    code, out, err = run_command(capsys, [command, "--run", str(tmp_path)])
    advice = f"{tmp_path} is a run of the profile full: give --profile full, or another --run"
    assert (code, out, err) == (2, "", f"dreamcache: {advice}\n")
    with pytest.raises(ValueError, match="is a run of the profile full"):
        record_configuration(tmp_path, load_profile("miniature"), builds=True)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_bytes() == before
    check_profile(tmp_path, load_profile("full", {"training.steps": 3}))
    (tmp_path / "config.json").write_text("{}")  # of an older version: the next start writes it anew
    check_profile(tmp_path, load_profile("miniature"))


def test_a_run_in_use_is_left_alone_before_anything_is_started(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_tiny_triplets(tmp_path)
    commands = (["run"], ["train-adapters"], ["ablate", "--only", "mid"], ["evaluate", "--calibrate"])
    with locked(tmp_path):
        for words in (["verify", str(tmp_path)], *([*command, "--run", str(tmp_path)] for command in commands)):
            code, out, err = run_command(capsys, words)
            assert (code, out) == (1, "") and f"{tmp_path} is in use by process {os.getpid()} on " in err


def test_targets_smaller_than_the_backbones_images_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tiny_triplets(tmp_path)
    with caplog.at_level(logging.WARNING, "flows"):
        _tell_of_enlarged(tmp_path, 64)
        assert caplog.messages == []
        _tell_of_enlarged(tmp_path, 96)
    assert caplog.messages == [
        "training: the targets' 64 px are enlarged to the backbone's 96 px: "
        "build a dataset with images.stored_size=96, or take a backbone of 64 px"
    ]
