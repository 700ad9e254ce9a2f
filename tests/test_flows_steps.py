"""Markers of folder steps: done only with all its files as they were, resumed only by the same recipe."""

import logging
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from kill_points import in_a_child

from flows.lock import InUse, first_free, locked
from flows.steps import Step

ROOT = Path(__file__).resolve().parents[1]


def step(folder: Path, **settings: object) -> Step:
    recipe = {"version": 1, "settings": {"steps": 4, "seed": 0, **settings}, "models": {"m": "x" * 64}, "inputs": {}}
    return Step("training", folder / "training", recipe, extendable=frozenset({"steps"}), free=frozenset({"parts"}))


def finished(folder: Path) -> Step:
    made = step(folder)
    assert made.begin() is None
    (made.folder / "weights").write_bytes(b"weights")
    made.finish([made.folder / "weights"], {"seconds": 1.0})
    return made


def test_a_step_goes_from_not_made_to_done(tmp_path: Path) -> None:
    assert step(tmp_path).changes() == ["training: not made yet"]
    step(tmp_path).begin()
    assert step(tmp_path).changes() == ["training: not finished"]
    finished(tmp_path)
    assert step(tmp_path).changes() == []


def test_changes_name_the_field_and_the_file(tmp_path: Path) -> None:
    made = finished(tmp_path)
    assert step(tmp_path, seed=1).changes() == ["training.seed: 0 -> 1"]
    (made.folder / "weights").write_bytes(b"WEIGHTS")
    assert step(tmp_path).changes() == ["training: weights is altered"]
    (made.folder / "weights").unlink()
    assert step(tmp_path).changes() == ["training: weights is gone"]


def test_work_of_another_recipe_is_set_aside_and_kept(tmp_path: Path) -> None:
    finished(tmp_path)
    aside = step(tmp_path, seed=1).begin()
    assert aside is not None and (aside / "weights").read_bytes() == b"weights"
    assert not (tmp_path / "training" / "weights").exists()
    (tmp_path / "training" / "weights").write_bytes(b"again")
    step(tmp_path).begin()  # the third recipe's work does not fall onto the first one's
    assert len(list(tmp_path.glob("training.*"))) == 2
    again = step(tmp_path, seed=1).begin()  # nor that of the first recipe, begun again, onto its earlier one
    assert again == aside.with_name(f"{aside.name}-2") and (aside / "weights").read_bytes() == b"weights"


def test_work_is_never_without_what_it_was_begun_with(tmp_path: Path) -> None:
    finished(tmp_path)

    def begin_where_nothing_can_be_written() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        step(tmp_path, steps=8).begin()

    assert in_a_child(begin_where_nothing_can_be_written, tmp_path / "points.log") == 1
    assert step(tmp_path).changes() == ["training: not finished"]
    aside = step(tmp_path, seed=1).begin()
    assert aside is not None and (aside / "weights").read_bytes() == b"weights"


@pytest.mark.parametrize(("steps", "kept"), [(8, True), (4, True), (2, False)])
def test_longer_work_goes_on_with_what_is_there(tmp_path: Path, steps: int, kept: bool) -> None:
    finished(tmp_path)
    later = step(tmp_path, steps=steps)
    assert (later.begin() is None) == kept
    assert (later.folder / "weights").exists() == kept
    assert later.changes() == ["training: not finished"]


def test_a_setting_that_changes_no_result_goes_on_with_what_is_there(tmp_path: Path) -> None:
    step(tmp_path, parts=4).begin()
    assert step(tmp_path, parts=2, steps=8).begin() is None
    assert step(tmp_path, parts=8, seed=1).begin() is not None


def test_a_torn_marker_is_no_marker(tmp_path: Path) -> None:
    made = finished(tmp_path)
    (made.folder / "done.json").write_text('{"recipe":')
    assert made.changes() == ["training: not finished"]


def test_a_run_folder_has_one_writer(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1 on a host that held it before")
    said = rf"in use by process {os.getpid()} on {socket.gethostname()}: wait"
    with locked(tmp_path), pytest.raises(RuntimeError, match=said), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_readers_share_a_folder_and_keep_writers_out(tmp_path: Path) -> None:
    with locked(tmp_path, shared=True), locked(tmp_path, shared=True):
        with pytest.raises(InUse) as caught, locked(tmp_path):
            pass
        assert caught.value.holder.startswith(f"process {os.getpid()} on ")
    with locked(tmp_path), pytest.raises(InUse), locked(tmp_path, shared=True):
        pass


def test_servers_at_once_have_folders_of_their_own(tmp_path: Path) -> None:
    with first_free(tmp_path / "prefect") as first, first_free(tmp_path / "prefect") as second:
        assert (first, second) == (tmp_path / "prefect", tmp_path / "prefect-2")
    with first_free(tmp_path / "prefect") as again:
        assert again == first


def test_a_part_of_a_run_folder_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As when the process of a block that was given up is still at work."""
    hold = "import sys, time; from pathlib import Path; from flows.lock import locked\n"
    hold += "with locked(Path(sys.argv[1]), '.block-00000.lock'): print(flush=True); time.sleep(1.5)"
    holder = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout is not None and holder.stdout.readline()
    with caplog.at_level(logging.INFO), locked(tmp_path, ".block-00000.lock", wait=True):
        assert holder.wait() == 0
    assert f"in use by process {holder.pid} on " in caplog.text
