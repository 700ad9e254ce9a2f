"""A command of `dreamcache` run in the test's own process."""

from collections.abc import Sequence
from typing import NamedTuple

import pytest

from flows.cli import app


class Said(NamedTuple):
    """How a command ended, and what it said on standard output and on standard error."""

    code: int
    out: str
    err: str


def run_command(capsys: pytest.CaptureFixture[str], words: Sequence[str]) -> Said:
    """Run a command; what was captured before is forgotten."""
    capsys.readouterr()
    code = 0
    try:
        app([*words], standalone_mode=False)
    except SystemExit as end:
        code = int(str(end.code or 0))
    return Said(code, *capsys.readouterr())
