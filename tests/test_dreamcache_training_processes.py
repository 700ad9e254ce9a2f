"""Training by two processes, as torchrun starts them, against one."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_dreamcache_training import CONFIG, assert_same_training, read_log
from tiny_diffusion import save_tiny_stable_diffusion
from tiny_triplets import write_tiny_triplets

from dreamcache import train, training
from dreamcache.backbone import load_backbone
from dreamcache.train import main
from shards.triplets import triplet_paths

# Saved at step 3, killed in step 5.
CONFIG_OF_PARTS = CONFIG.model_copy(update={"steps": 5, "accumulation": 2})


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("processes")
    save_tiny_stable_diffusion(place / "sd")
    write_tiny_triplets(place / "run")
    content = {"backbone": str(place / "sd"), "training": CONFIG_OF_PARTS.model_dump(mode="json")}
    (place / "run" / "config.json").write_text(json.dumps(content))
    return place


def train_and_record(place: Path, folder: Path, rank: int, count: int) -> None:
    """Train as one of several processes, keeping the batches that it learns from in `FOLDER.RANK`."""
    if count > 1:
        store = folder.with_suffix(".store")
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
    batches = []
    with pytest.MonkeyPatch.context() as patch:
        loss = training.training_loss
        patch.setattr(training, "training_loss", lambda *arguments: (batches.append(arguments[2]), loss(*arguments))[1])
        paths = triplet_paths(place / "run")
        training.train_adapters(load_backbone(place / "sd"), paths, CONFIG_OF_PARTS, folder)
    torch.save(batches, folder.with_suffix(f".{rank}"))


def train_in_two_processes(place: Path, folder: Path) -> Path:
    spawn = multiprocessing.get_context("spawn")  # a fork ends with code 1, its work done, where Prefect ran before
    children = [spawn.Process(target=train_and_record, args=(place, folder, rank, 2)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    return folder


@pytest.fixture(scope="module")
def by_two(place) -> Path:
    return train_in_two_processes(place, place / "two")


def test_two_processes_learn_from_the_rows_of_one(place, by_two):
    train_and_record(place, place / "one", 0, 1)
    one, *two = (torch.load(place / name, weights_only=True) for name in ("one.0", "two.0", "two.1"))
    assert len(one) == len(two[0]) == len(two[1]) == CONFIG_OF_PARTS.steps * 2
    for whole, *shares in zip(one, *two, strict=True):
        assert {"timestep", "noise", "reference_noise", "drop_caption", "latents", "text"} < whole.keys()
        assert all(torch.equal(whole[name], torch.cat([share[name] for share in shares])) for name in whole)
    for row, other in zip(read_log(place / "one"), read_log(by_two), strict=True):
        assert float(other["loss"]) == pytest.approx(float(row["loss"]), rel=1e-5)


def test_two_processes_killed_and_resumed_equal_undisturbed(place, by_two):
    script = place / "killed.py"
    script.write_text(
        "import os, signal, sys\n"
        "import dreamcache.training as training\n"
        "from dreamcache.train import main\n"
        "loss, seen = training.training_loss, []\n"
        "def counted(*arguments):\n"
        "    seen.append(1)\n"
        "    if len(seen) == 10 and os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return loss(*arguments)\n"
        "training.training_loss = counted\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run(
        [*torchrun, str(script), str(place / "run")], env=environment, capture_output=True, text=True
    )
    assert killed.returncode != 0 and f"exitcode  : {-signal.SIGKILL}" in killed.stderr, killed.stderr
    folder = place / "run" / "training"
    assert torch.load(folder / "state" / "training.pt", weights_only=True)["step"] == 3
    train_in_two_processes(place, folder)
    assert_same_training(folder, by_two)


def test_command_trains_a_run_and_names_what_is_missing(place, tmp_path, capsys):
    run = tmp_path / "run"
    write_tiny_triplets(run)
    assert main([str(run)]) == 1
    assert "config.json is missing: `dreamcache build-dataset" in capsys.readouterr().err
    few = CONFIG.model_copy(update={"steps": 1}).model_dump(mode="json")
    (run / "config.json").write_text(json.dumps({"backbone": str(place / "sd"), "training": few}))
    assert main([str(run)]) == 0
    out = capsys.readouterr().out
    assert "encoded 20 of 20 triplets" in out and "step 1 of 1" in out and "adapters" in out
    (run / "captions").mkdir()  # a build, then, of three shards, or of more triplets than there are
    for built, part in (({"shards": 3}, "2 of 3 shards"), ({"target_triplets": 21}, "20 of 21 triplets")):
        content = {"backbone": str(place / "sd"), "training": few, "dataset": built}
        (run / "config.json").write_text(json.dumps(content))
        assert main([str(run)]) == 1
        assert f"the dataset ({part}) is not finished: run build-dataset" in capsys.readouterr().err
    (run / "config.json").write_text(json.dumps({"backbone": "x", "training": {"steps": 0}}))
    assert main([str(run)]) == 1
    assert "holds no training's settings" in capsys.readouterr().err


def test_encoding_is_told_now_and_then_with_rate_and_time_left(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(train.time, "monotonic", lambda: now[0])
    report = train.PrintedProgress()
    for done in range(116, 501, 16):  # 100 were encoded before
        report({"encoded": done, "triplets": 500})
        now[0] += 4
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "encoded 116 of 500 triplets" and lines[-1] == "encoded 500 of 500 triplets, 4.0 triplets/s"
    assert lines[1] == "encoded 164 of 500 triplets, 4.0 triplets/s, 84 s left" and len(lines) == 9
