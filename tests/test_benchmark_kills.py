"""The whole miniature DreamBooth, 30 subjects x 25 prompts, killed by SIGKILL in each part and gone on with.

`make benchmark` runs it in runs/benchmark, which stays with its report, in about an hour on two cores, and ends with
the table of all that is compared. DREAMCACHE_BENCHMARK_SETTINGS makes it smaller while this test is worked on:
"--set benchmark.subjects=5 --set evaluation.prompts=2 --set shards=2 --set training.steps=20".
"""

import json
import os
import shutil
from pathlib import Path

import pytest
from test_demo_kills import REACHED, ROOT, kill_at, start
from typer.testing import CliRunner

from flows.cli import app
from flows.profiles import recorded_profile

SETTINGS = "--set benchmark.subjects=30 --set benchmark.images=5 --set evaluation.prompts=null"
PARTS = ("images", "masks", "embeddings", "masked")
EVERYTHING = ("no-adapters", "adapters", "wrong-reference", "copy-paste")

pytestmark = pytest.mark.benchmark


def finished(run: Path, part: str) -> dict[Path, tuple[int, int]]:
    """The shards of a part of the evaluation that have a marker: which file each is, and since when."""
    markers = (run / "evaluation" / part).glob("*/*.done.json")
    found = {marker: marker.with_name(marker.name.replace(".done.json", ".tar")).stat() for marker in markers}
    return {marker: (status.st_ino, status.st_mtime_ns) for marker, status in found.items()}


def test_the_benchmark_killed_in_each_part_and_summed_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Path(os.environ.get("DREAMCACHE_BENCHMARK_RUN", ROOT / "runs" / "benchmark"))
    run.parent.mkdir(parents=True, exist_ok=True)
    for folder in (run / "evaluation", run / "real"):
        shutil.rmtree(folder, ignore_errors=True)  # dataset and adapters of an earlier run may stay
    smaller = os.environ.get("DREAMCACHE_BENCHMARK_SETTINGS", "")
    monkeypatch.setenv("DREAMCACHE_KILLS_SETTINGS", f"{SETTINGS} {smaller}")
    before = {}
    for part in PARTS:
        monkeypatch.setitem(REACHED, part, lambda run, part=part: len(finished(run, part)) > 2)
        kill_at(run, part)
        before[part] = finished(run, part)
    assert start(run).wait() == 0, (run.parent / f"{run.name}.log").read_text()[-2000:]
    for part, shards in before.items():
        assert shards.items() < finished(run, part).items(), f"{part} were made twice, or all before the kill"

    profile = recorded_profile(run)
    assert profile is not None
    table = json.loads((run / "benchmark" / "images" / "subjects.json").read_text())
    prompts = profile.evaluation.prompts or 25
    evaluation = run / "evaluation"
    rows = [json.loads(line) for line in (evaluation / "rows.jsonl").read_text().splitlines()]
    cases = {(row["variant"], row["subject"], row["prompt_index"]) for row in rows}
    rejects = [path for part in ("images", "embeddings") for path in (evaluation / part).glob("*/*.rejects.jsonl")]
    rejected = [line for path in rejects for line in path.read_text().splitlines()]
    assert len(cases) == len(rows) == len(EVERYTHING) * len(table["subjects"]) * prompts - len(rejected)
    # From the rows alone, by a command of its own, in another place.
    alone = tmp_path / "evaluation"
    alone.mkdir()
    for name in ("rows.jsonl", "real.jsonl", "summary.json"):
        shutil.copy(evaluation / name, alone)
    said = CliRunner().invoke(app, ["evaluate", "--rows", str(alone)])
    assert said.exit_code == 0 and said.output.endswith("summary.json says the same, to the last digit.\n"), said.output
    for label in ("No adapters", "Copied reference", "Real against real"):
        assert label in (run / "report.html").read_text()
    print(f"\n{said.output}\nReport: {run / 'report.html'}")
