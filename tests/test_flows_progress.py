"""What a command says of itself: examples in every help, progress on terminals and elsewhere, errors, JSON alone."""

import inspect
import io
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer
from tiny_triplets import write_tiny_triplets

from flows import progress
from flows.cli import app
from flows.command import fail, or_one_line
from flows.progress import Progress


def test_every_help_teaches_by_an_example_that_parses() -> None:
    group = typer.main.get_command(app)
    for name, command in {"": group, **group.commands}.items():  # type: ignore[attr-defined]
        examples = re.findall(r"Example: dreamcache (.+?)(?:\n\n|$)", inspect.cleandoc(command.help), re.DOTALL)
        assert examples, name
        for example in examples:
            called, *arguments = shlex.split(example)
            assert called == name or not name
            group.commands[called].make_context(called, arguments)  # type: ignore[attr-defined]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_are_plain_and_few_where_there_is_no_terminal(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    report = Progress("read", "shards")
    for done in range(40, 101):  # 39 were done before
        report(done, 100)
        clock[0] += 0.5
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "read 60 of 100 shards, 2.00 a second, 20 s left",
        "read 80 of 100 shards, 2.00 a second, 10 s left",
    ]


def test_a_terminal_has_a_bar_that_goes_away(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "60")
    report = Progress("read", "shards")
    for done in range(1, 5):
        clock[0] += 1
        report(done, 4)
    written = screen.getvalue()
    assert "\n" not in written and written.endswith("\r\x1b[K")
    bars = [text.removesuffix("\x1b[K") for text in written.split("\r") if "[#" in text]
    assert bars[1].startswith(f"[{'#' * 12}{'.' * 12}] read 2 of 4 shards, 1.00 a se") and len(bars[1]) == 59
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(SystemExit):
        fail(ValueError("broken\noff"), 1)
    assert sys.stderr.getvalue() == "\r\x1b[Kdreamcache: broken off\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "stopped; start again to go on where it stood"),
        (OSError("no space\nleft"), 1, "no space left"),
        (KeyError("captions"), 1, "KeyError: 'captions' (--debug shows where)"),
        (RuntimeError(), 1, "RuntimeError"),
    ],
)
def test_what_ends_a_command_is_one_line_and_with_debug_a_traceback(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def action() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        or_one_line(action, debug=False)
    assert (end.value.code, capsys.readouterr().err) == (code, f"dreamcache: {said}\n")
    if code == 1:
        with pytest.raises(type(error)):
            or_one_line(action, debug=True)


def test_inspect_and_verify_print_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_triplets(tmp_path / "run", shards=2, triplets_a_shard=2)
    app(["inspect", str(tmp_path / "run"), "--out", str(tmp_path / "sheet.jpg"), "--json"], standalone_mode=False)
    said = json.loads(capsys.readouterr().out)
    assert said["triplets"] == 4 and said["stages"]["triplets"]["out"] == 4
    assert said["contact_sheet"] == str(tmp_path / "sheet.jpg") and (tmp_path / "sheet.jpg").is_file()
    shard = tmp_path / "run" / "triplets" / "00001.tar"
    app(["inspect", str(shard)], standalone_mode=False)
    assert f"Contact sheet: {shard}.jpg\n" in capsys.readouterr().out and Path(f"{shard}.jpg").is_file()
    app(["verify", str(tmp_path / "run"), "--json"], standalone_mode=False)
    heard = capsys.readouterr()
    assert json.loads(heard.out)["right"] is True and "is right" in heard.err
    torn = tmp_path / "run" / "triplets" / "00001.tar"
    torn.write_bytes(torn.read_bytes()[:-10])
    with pytest.raises(SystemExit) as end:
        app(["verify", str(tmp_path / "run"), "--json"], standalone_mode=False)
    said = json.loads(capsys.readouterr().out)
    assert end.value.code == 1 and said["right"] is False
    ((fault),) = said["faults"]
    assert fault["file"] == "triplets/00001.tar" and fault["problem"].startswith("cut short")
