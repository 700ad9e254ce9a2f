"""The command line on a whole run of very small models, in processes of its own as a user starts them."""

import base64
import contextlib
import hashlib
import html
import io
import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from tiny_profile import as_arguments, tiny_settings

from flows.cli import app
from flows.settings import parse_settings
from shards.files import read_tar_records

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("captions", "dedup", "images", "masks", "gates", "triplets")


def command(name: str, run: Path, *extra: str, **changed: Any) -> list[str]:
    settings = {**tiny_settings(), **changed}
    return [sys.executable, "-m", "flows.cli", name, "--run", str(run), *as_arguments(settings), *extra]


def dreamcache(name: str, run: Path, *extra: str, **changed: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(name, run, *extra, **changed), cwd=ROOT, capture_output=True, text=True, timeout=400)


def dataset_digests(run: Path) -> dict[str, str]:
    """SHA-256 of every data and rejects file of the stages; markers, which hold times, aside."""
    return {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for stage in STAGES
        for path in sorted((run / stage).iterdir())
        if path.is_file()
        if not path.name.endswith("done.json")
    }


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    run = tmp_path_factory.mktemp("runs") / "first"
    done = dreamcache("run", run)
    assert done.returncode == 0, done.stdout + done.stderr
    return run, done.stdout


def test_a_run_names_its_report_and_prints_held_out_losses(finished_run: tuple[Path, str]) -> None:
    run, said = finished_run
    assert f"Report: {run / 'report.html'}" in said
    assert re.search(r"held-out loss right reference [\d.]+, wrong reference [\d.]+, no reference [\d.]+", said)
    assert (run / "evaluation" / "summary.json").is_file()


def test_report_stands_alone(finished_run: tuple[Path, str]) -> None:
    text = (finished_run[0] / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert text.count("data:image/jpeg;base64,") > 30
    for heading in (
        "stage by stage",
        "Rejects by reason",
        "Triplets",
        "Training",
        "Gallery",
        "<h2>Attention</h2>",
        "Scores",
        "Hard subjects",
        "by prompt",
        "Sweep of the scales",
        "Time and cost by stage",
        "Best and worst cases",
        "Subject by subject",
        "Likeness against the prompt",
        "Beside the paper's Table 2",
    ):
        assert heading in text
    for label in ("No adapters", "Committed adapters", "wrong reference", "Real against real", "no box", "MDINO"):
        assert label in text
    assert "<tr><td>committed</td>" in text, "the held-out loss of the adapters that are compared"


def test_the_reports_commands_make_its_pictures_again(
    finished_run: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = finished_run
    page = (run / "report.html").read_text(encoding="utf-8")
    commands = re.search(r'<tr class="again">.*?<pre>(.*?)</pre>', page, re.DOTALL)
    assert commands
    monkeypatch.chdir(tmp_path)
    for line in html.unescape(commands[1]).splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "python":
            exec(words[2], {})
        elif words:
            app(words[1:], standalone_mode=False)
    places = {
        "no-adapters": "evaluation/images/no-adapters",
        "committed-adapters": "evaluation-compared/images/adapters",
        "just-trained": "evaluation/images/adapters",
        "just-trained-wrong-reference": "evaluation/images/wrong-reference",
    }
    for name, stored in places.items():
        images = {key: parts["png"] for key, parts in read_tar_records(run / stored / "00000.tar")}
        (made,) = tmp_path.glob(f"*-{name}.png" if name == "no-adapters" else f"again/*-{name}/00-*.png")
        case = (made if name == "no-adapters" else made.parent).name.partition(f"-{name}")[0]
        again = np.asarray(Image.open(made), dtype=int)
        differences = {
            key: np.abs(again - np.asarray(Image.open(io.BytesIO(png)))).max() for key, png in images.items()
        }
        assert differences.pop(case) <= 2, name
        assert min(differences.values()) > 20, "another case's picture would have passed"


def test_a_gallery_is_drawn_by_lot(finished_run: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    run, sheets = finished_run[0], []
    for words in (["--seed", "1"], ["--seed", "1"], ["--seed", "2"], ["--name", "evaluation-compared"]):
        app(["gallery", str(run), "--count", "3", *words], standalone_mode=False)
        sheets.append(Image.open(run / "gallery.jpg").convert("RGB").tobytes())
    assert sheets[0] == sheets[1] and len(set(sheets)) == 3
    app(["gallery", str(run), "--count", "3", "--out", str(run / "sheet.png")], standalone_mode=False)
    assert Image.open(run / "sheet.png").format == "PNG"
    with pytest.raises(SystemExit, match="1"):
        app(["gallery", str(run), "--name", "evalution"], standalone_mode=False)
    assert (
        "has no finished evalution by its settings (finished: evaluation, evaluation-compared"
        in capsys.readouterr().err
    )


def test_attention_is_shown_with_the_command_that_gives_its_shares_again(
    finished_run: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished_run
    page = (run / "report.html").read_text(encoding="utf-8")
    figures = re.findall(r'<figure class="card looks">.*?</figure>', page, re.DOTALL)
    assert len(figures) == 4  # all subjects of this benchmark, one picture each
    monkeypatch.chdir(tmp_path)
    for number, figure in enumerate(figures):
        commands = re.search(r"<pre>(.*?)</pre>", figure, re.DOTALL)
        assert commands
        for words in map(shlex.split, html.unescape(commands[1]).splitlines()):
            if words[0] == "tar":
                subprocess.run(words, check=True)
            else:
                app(words[1:], standalone_mode=False)
        ((_, parts),) = read_tar_records(run / "evaluation" / "attention" / f"{number:05d}.tar")
        layers = json.loads(parts["json"])["layers"]
        shares = [line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.endswith("%")]
        for given, layer in zip(shares, layers, strict=True):
            for text, name in zip(given, ("attention", "area"), strict=True):
                assert float(text.rstrip("%")) == pytest.approx(100 * layer[name], abs=0.1)


def test_prefect_is_shown_curves_pictures_accounts_scores_and_the_report(finished_run: tuple[Path, str]) -> None:
    run, _ = finished_run
    with contextlib.closing(sqlite3.connect(run / "prefect" / "prefect.db")) as database:
        shown = database.execute("SELECT key, type, data, description FROM artifact").fetchall()
        (encoded,) = database.execute("SELECT updated FROM artifact WHERE description LIKE 'latents: %'").fetchone()
        (first_loss,) = database.execute("SELECT min(created) FROM artifact WHERE key = 'training-loss'").fetchone()
        names = {name for (name,) in database.execute("SELECT name FROM flow_run")}
    assert names == {f"{what} {run}" for what in ("all of", "dataset in", "adapters of", "evaluation of")}
    data = {key: json.loads(data) for key, _, data, _ in shown if key}
    for key in ("training-loss", "held-out-loss-curves"):
        svg = base64.b64decode(data[key].removeprefix("data:image/svg+xml;base64,")).decode()
        ElementTree.fromstring(svg)
        assert "<style>" in svg and "<polyline" in svg
    assert data["triplets"].startswith("data:image/jpeg;base64,")
    assert re.search(r"\| \w+ \| [a-z ]+ \| \d+ \|", data["dataset-accounts"])
    assert re.search(r"\d\.\d+ \[-?\d\.\d+, -?\d\.\d+\]", str(data["evaluation-scores"]))
    # This server shows no reports: the link is to the file.
    assert data["report-first"] == f"[Report of {run}]({(run / 'report.html').as_uri()})"
    progress = {text for _, kind, _, text in shown if kind == "progress"}
    assert "captions: 32 records in" in {text.rsplit(" ", 2)[0] for text in progress}
    assert not [text for text in progress if text.endswith("left")]
    assert encoded < first_loss, "the progress of encoding ends where training begins"


def test_a_second_start_finds_all_up_to_date_without_torch_or_prefect(finished_run: tuple[Path, str]) -> None:
    run, _ = finished_run
    loaded = "sorted({'torch', 'prefect'} & set(sys.modules))"
    spy = f"import sys, flows.cli\ntry:\n flows.cli.main()\nfinally:\n print({loaded})"
    arguments = command("run", run)[3:]
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", spy, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "All is up to date" in done.stdout and "report.html" in done.stdout
    assert done.stdout.endswith("[]\n")
    assert time.monotonic() - started < 15


def test_a_dry_run_says_what_a_changed_setting_redoes_and_touches_nothing(finished_run: tuple[Path, str]) -> None:
    run, _ = finished_run
    before = dataset_digests(run)
    done = dreamcache("run", run, "--dry-run", **{"images.guidance_scale": 5.0})
    assert "images: 2 shards (00000 to 00001) to make: images.guidance_scale: 3.5 -> 5.0" in done.stdout
    assert not re.search("^(captions|dedup)", done.stdout, re.MULTILINE)
    assert dataset_digests(run) == before
    gates = dreamcache("build-dataset", run, "--dry-run", **{"gates.min_area": 0.001})
    assert "gates.min_area: 0 -> 0.001" in gates.stdout.replace("0.0 ", "0 ")
    assert not re.search("^(captions|dedup|images|masks)", gates.stdout, re.MULTILINE)


@pytest.mark.kills
def test_killed_runs_leave_no_process_and_the_same_dataset(finished_run: tuple[Path, str], tmp_path: Path) -> None:
    """kill -9 of the parent, as of `make demo`, in the middle of a run; the next start ends with the same bytes."""
    run = tmp_path / "killed"
    parent = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", parent, *command("build-dataset", run, "--end-with-parent")], cwd=ROOT
    )
    while not (run / "images").is_dir() and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while (left := processes_naming(run)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, left
    done = dreamcache("build-dataset", run)
    assert done.returncode == 0, done.stderr
    assert dataset_digests(run) == dataset_digests(finished_run[0])


def processes_naming(run: Path) -> list[str]:
    """Command lines and environments of live processes that name a run folder: ours and the server's."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if str(run).encode() in text and int(folder.name) != os.getpid():
            found.append(text[:200].decode(errors="replace"))
    return found


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "--profile", "minature"], 2, "no profile minature; did you mean miniature?"),
        (["run", "--set", "images.guidence_scale=5"], 2, "did you mean images.guidance_scale?"),
        (["build-dataset", "--set", "images.steps"], 2, "not of the form name=value"),
        (["build-dataset", "--set", "images.model=/nowhere"], 1, "images.model: "),
        (["build-dataset", "--set", "captions.taxonomy=/nowhere.json"], 1, "taxonomy /nowhere.json does not exist"),
    ],
)
def test_errors_are_one_line(arguments: list[str], code: int, said: str, tmp_path: Path) -> None:
    given = {
        **tiny_settings(),
        **parse_settings([arguments[2]] if arguments[1] == "--set" and "=" in arguments[2] else []),
    }
    rest = arguments[1:] if code == 2 else []
    line = [sys.executable, "-m", "flows.cli", arguments[0], "--run", str(tmp_path / "run")]
    settings = as_arguments(given) if code == 1 else []
    done = subprocess.run([*line, *settings, *rest], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_damage_is_named_and_mended_or_refused(finished_run: tuple[Path, str], tmp_path: Path) -> None:
    run = tmp_path / "damaged"
    shutil.copytree(finished_run[0], run)
    torn = run / "triplets" / "00001.tar"
    torn.write_bytes(torn.read_bytes()[:-2000])
    refused = dreamcache("train-adapters", run, "--dry-run")
    assert refused.returncode == 1 and "00001.tar is torn or altered" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    plan = dreamcache("build-dataset", run, "--dry-run")
    assert "triplets: 1 shard (00001) to make: 00001.tar is torn or altered" in plan.stdout
    empty = run / "captions" / "00000.jsonl"
    empty.write_bytes(b"")
    plan = dreamcache("build-dataset", run, "--dry-run")
    assert "captions: 1 shard (00000) to make: 00000.jsonl is torn or altered" in plan.stdout


def test_training_refuses_triplets_older_than_their_gates(finished_run: tuple[Path, str], tmp_path: Path) -> None:
    run = tmp_path / "rebuilding"
    shutil.copytree(finished_run[0], run)
    marker = run / "gates" / "00000.done.json"
    content = json.loads(marker.read_text())
    content["shard"]["sha256"] = "0" * 64  # as if gates had been made again, and the triplets not yet
    marker.write_text(json.dumps(content))
    refused = dreamcache("train-adapters", run)
    assert refused.returncode == 1
    assert "triplets/00000.tar is older than what it was made from" in refused.stderr
