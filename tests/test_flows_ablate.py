"""`dreamcache ablate` on very small models: rows are skipped, resumed and compared; what does not hold is said so."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from in_process import run_command
from tiny_profile import as_arguments, tiny_settings
from tiny_triplets import write_tiny_triplets

from dreamcache.ablations import FINDINGS, TABLES
from flows import report_ablations, score_tables
from flows.ablations import Study
from flows.profiles import load_profile
from flows.server import prefect_server
from flows.verify import verify_run
from shards.files import read_json_lines

ROOT = Path(__file__).resolve().parents[1]
# Kills the process where the named row has taken so many steps; its state is saved every two.
KILLED = (
    "import os, signal, sys\n"
    "import dreamcache.training as training\n"
    "from flows.cli import main\n"
    "row, steps = sys.argv.pop(1), int(sys.argv.pop(1))\n"
    "run, validate = training._Training.run, training._Training._validate\n"
    "def counted(self):\n"
    "    if f'/{row}/' in str(self.folder) and self.step >= steps: os.kill(os.getpid(), signal.SIGKILL)\n"
    "    return validate(self)\n"
    "training._Training._validate = counted\n"
    "main()\n"
)
# Is at a row of its own until another one is made, then dies.
HOLDER = (
    "import os, signal, sys, time\n"
    "from pathlib import Path\n"
    "from flows.lock import locked\n"
    "with locked(Path(sys.argv[1])):\n"
    "    print(flush=True)\n"
    "    while not Path(sys.argv[2]).exists(): time.sleep(0.05)\n"
    "    os.kill(os.getpid(), signal.SIGKILL)\n"
)


class Workplace:
    """A run folder of triplets, and `say`, which runs `dreamcache ablate` there: its code and what it said."""

    def __init__(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.run, self.capsys = run, capsys

    def arguments(self, *words: str, **changed: Any) -> list[str]:
        small = {"evaluation.prompts": 1, "training.validation_triplets": 2}
        return ["ablate", "--run", str(self.run), *words, *as_arguments({**tiny_settings(), **small, **changed})]

    def say(self, *words: str, **changed: Any) -> tuple[int, str]:
        heard = run_command(self.capsys, self.arguments(*words, **changed))
        return heard.code, heard.out + heard.err

    def made(self) -> dict[str, int]:
        """When what rows keep was written: adapters and scores."""
        files = [*self.run.glob("ablations/*/training/adapters/*"), *self.run.glob("ablations/*/evaluation/rows.jsonl")]
        return {path.relative_to(self.run / "ablations").as_posix(): path.stat().st_mtime_ns for path in files}

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["row"]: row for row in read_json_lines(self.run / "ablations" / "rows.jsonl")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with prefect_server(tmp_path_factory.mktemp("server"), meanwhile=lambda: None) as address:
        yield address


@pytest.fixture
def work(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Workplace:
    write_tiny_triplets(tmp_path / "run")
    return Workplace(tmp_path / "run", capsys)


def test_a_killed_study_keeps_finished_rows_and_goes_on_in_the_row_it_was_at(work: Workplace, server: str) -> None:
    only = ("--only", "mid", "--only", "scale-double", "--only", "with-background")
    command = [sys.executable, "-c", KILLED, "mid", "4", *work.arguments(*only)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PREFECT_API_URL": server}, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = work.made()
    assert {name.split("/")[0] for name in before} == {"default", "mid"}
    assert "default/evaluation/rows.jsonl" in before and "mid/evaluation/rows.jsonl" not in before

    _, plan = work.say(*only, "--dry-run")
    assert "default (the profile as it is): up to date" in plan
    assert 'mid (training.adapters.layers=["mid"]): training: not finished' in plan
    assert 'with-background (training.references="image"): not begun' in plan
    code, said = work.say(*only)
    assert code == 0 and "To do: 3 of 4 rows" in said and "row 1 of 4" not in said, said
    gone_on = said.partition("row 2 of 4, mid")[2].partition("row 3 of 4")[0]
    assert "training: step 4" in gone_on and "training: step 2" not in gone_on
    after = work.made()
    assert all(after[name] == before[name] for name in before if name.startswith("default/"))

    assert "To do" not in work.say(*only)[1] and work.made() == after
    _check_rows(work)
    _check_tables(work.run, said)
    code, said = work.say("--only", "mid", "--repeats", "2")
    assert code == 0 and "To do: 2 of 4 rows" in said
    _check_seeds(work, said)
    assert verify_run(work.run).lines == []


def _check_rows(work: Workplace) -> None:
    """Every finished row says what it was and how it compares, and is a run folder that shares the dataset."""
    rows = work.rows()
    assert list(rows) == ["default", "mid", "with-background", "scale-double"]
    assert rows["mid"]["settings"] == {"training.adapters.layers": ["mid"]} and rows["mid"]["against"] == "default"
    assert rows["mid"]["parameters"] < rows["default"]["parameters"] and rows["default"]["difference"] is None
    assert rows["scale-double"]["trained_in"] == "default"
    for name in ("mid", "scale-double"):
        change = rows[name]["difference"]["dino"]
        assert change["low"] <= change["mean"] <= change["high"]
        apart = rows[name]["scores"]["dino"]["mean"] - rows["default"]["scores"]["dino"]["mean"]
        assert change["mean"] == pytest.approx(apart)
    assert rows["mid"]["held_out_loss"].keys() == {"right", "wrong", "none"}
    row = work.run / "ablations" / "with-background"
    assert (row / "triplets").resolve() == work.run / "triplets" and (row / "real").resolve() == work.run / "real"
    assert json.loads((row / "config.json").read_text())["training"]["references"] == "image"
    compared = score_tables.compared(row, work.run / "ablations" / "default")
    assert compared["differences"]["overall"]["dino"]["mean"] == rows["with-background"]["difference"]["dino"]["mean"]


def _check_tables(run: Path, said: str) -> None:
    assert "## Cached layers (paper Table 5)" in said and "| 0.716" in said and "Without adapters: DINO" in said
    assert "the default layers beat fewer (CLIP-I): not judged. mid-decoder - mid " in said
    assert "Text in the cache" not in said
    assert (run / "ablations" / "ablations.md").read_text() in said
    found = report_ablations.ablations(run)
    assert found is not None and "Cached layers (paper Table 5)" in [table["title"] for table in found["tables"]]
    tables = {table["name"]: table for table in json.loads((run / "ablations" / "tables.json").read_text())["tables"]}
    assert tables["layers"]["lines"][0]["seeds"] == 0 and tables["layers"]["baseline"] == "mid-decoder"
    assert base64.b64decode(found["chart"].partition(",")[2]) == (run / "ablations" / "ablations.svg").read_bytes()
    assert "Without adapters: DINO" in found["text"]
    assert "Cached layers (paper Table 5)" in (run / "report.html").read_text()


def _check_seeds(work: Workplace, said: str) -> None:
    """Seeds are rows of their own, compared with the default of the same seed, and count together."""
    rows = work.rows()
    assert [rows[name]["seed"] for name in ("default", "mid", "default-2", "mid-2")] == [0, 0, 1, 1]
    found = json.loads((work.run / "ablations" / "tables.json").read_text())["findings"]
    (pair,) = next(one for one in found if (one["table"], one["metric"]) == ("layers", "dino"))["comparisons"]
    seeds = [-rows[name]["difference"]["dino"]["mean"] for name in ("mid", "mid-2")]
    assert pair["by_seed"] == pytest.approx(seeds) and pair["mean"] == pytest.approx(sum(seeds) / 2)
    assert "(2 seeds)" in said


def test_a_row_that_fails_is_named_and_keeps_no_other_from_being_made(work: Workplace) -> None:
    shutil.rmtree(work.run / "triplets")
    write_tiny_triplets(work.run, shards=1, triplets_a_shard=4)  # an eighth of them is none
    small = {"training.held_out": 0.0, "training.steps": 2, "evaluation.subjects": 2}
    code, said = work.say("--only", "data-eighth", "--only", "t-300", **small)
    assert code == 1 and "1 of 3 rows failed, the others are kept: data-eighth: there is no record" in said, said
    assert list(work.rows()) == ["default", "t-300"]


@pytest.mark.workers
def test_a_row_that_another_process_is_at_is_left_to_it_and_made_if_that_dies(work: Workplace) -> None:
    place = work.run / "ablations"
    command = [sys.executable, "-c", HOLDER, str(place / "mid"), str(place / "t-300" / "evaluation" / "rows.jsonl")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        code, said = work.say("--only", "mid", "--only", "t-300")
    assert code == 0 and f"row 2 of 3, mid: left to process {holder.pid} on " in said, said
    assert said.index("row 3 of 3, t-300: {") < said.index("row 2 of 3, mid: {")
    assert list(work.rows()) == ["default", "mid", "t-300"]


@pytest.mark.workers
def test_commands_at_once_share_out_the_rows(work: Workplace, server: str) -> None:
    only = ("--only", "encoder", "--only", "mid", "--only", "scale-double")
    command = [sys.executable, "-c", "from flows.cli import main; main()", *work.arguments(*only)]
    environment = {**os.environ, "PREFECT_API_URL": server}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as other:
        code, said = work.say(*only)
        assert other.stdout is not None
        said += other.stdout.read()
    assert code == other.returncode == 0, said
    assert said.count("training: done") == 3 and said.count("scale-double: {") == 1 and "left to process" in said, said
    assert len(work.rows()) == 4


def test_a_wrong_row_and_a_missing_dataset_are_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for only, code, said in (("layer", 2, "did you mean layers"), ("layers", 1, "run build-dataset for it first")):
        found = run_command(capsys, ["ablate", "--run", str(tmp_path), "--only", only, "--dry-run"])
        assert (found.code, found.out) == (code, "") and said in found.err


def test_the_rows_are_the_papers_tables() -> None:
    study = Study(load_profile("full"), Path("nowhere"))
    rows = {row.name: row for row in study.rows(repeats=2)}
    assert set(study.variants.values()) == {row.variant for row in rows.values()} and len(study.settings) == 19
    assert study.variants["spatial-concat"] == study.variants["text-free"] == study.variants["data-all"] == "default"
    assert rows["scale-half"].profile.evaluation.sampling.image_guidance_scale == 0.2
    # Published scores within 0.005 of the default's.
    again = {row.variant for row in rows.values() if row.repeat}
    assert again == {"default", "spatial-sum", "decoupled-blocks", "all-layers", "text-in-cache"}
    # Only the paper's adapters can start from the self-attention: the others have a default of their own.
    small = Study(load_profile("miniature"), Path("nowhere"))
    assert small.baseline("textual-sum") == small.baseline("mid-resolution") == "spatial-concat"
    assert [row.name for row in small.rows(["textual-sum"])] == ["default", "textual-sum", "spatial-concat"]
    with pytest.raises(ValueError, match="there is no row or table layer; did you mean layers"):
        small.rows(["layer"])
    # Without image scales the rows that would be of none but these are refused, the others not.
    joint = Study(load_profile("full", {"evaluation.sampling.guidance": "joint"}), Path("nowhere"))
    for only in ([], ["scale-half"], ["layers", "image-scale"]):
        with pytest.raises(ValueError, match="joint guidance has one scale"):
            joint.rows(only)
    assert [row.name for row in joint.rows(["mid"])] == ["default", "mid"]
    for finding in FINDINGS:
        assert {name for pair in finding.pairs for name in pair} <= {line.name for line in TABLES[finding.table].lines}
