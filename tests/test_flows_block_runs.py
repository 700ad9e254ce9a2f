"""A block's failure on a worker: what may pass is raised, for Prefect's next try; what would come again is a state."""

from pathlib import Path

import httpx
import pytest

from flows import artifacts
from flows.artifacts import Progress
from flows.block_runs import HOPELESS, block_run


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (MemoryError("Unable to allocate 3 GiB"), True),
        (OSError(5, "Input/output error"), True),
        (RuntimeError("CUDA error"), True),
        (httpx.ConnectError("Connection refused"), True),
        (ValueError("gates: no record was left"), False),
        (FileNotFoundError("there is no model"), False),
    ],
)
def test_what_may_pass_is_tried_again(tmp_path: Path, error: Exception, passing: bool) -> None:
    (tmp_path / "config.json").write_text("{}")

    def make(folder: Path) -> None:
        raise error

    if passing:
        with pytest.raises(type(error)):
            block_run(str(tmp_path), ".lock", make)
    else:
        state = block_run(str(tmp_path), ".lock", make)
        assert state is not None and state.name == HOPELESS and state.message == str(error)


def test_a_server_that_does_not_answer_stops_no_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shown: list[float | None] = []

    def create(progress: float, description: str | None = None) -> str:
        shown.append(progress)
        if len(shown) == 1:
            raise httpx.ConnectError("Connection refused")
        return "the artifact"

    def update(artifact: str, progress: float, description: str | None = None) -> None:
        shown.append(progress)
        raise httpx.ReadTimeout("too late")

    monkeypatch.setattr(artifacts, "create_progress_artifact", create)
    monkeypatch.setattr(artifacts, "update_progress_artifact", update)
    monkeypatch.setattr(artifacts, "EVERY", 0.0)
    with pytest.raises(ValueError, match="the work's own"), Progress("images", 4, "images") as progress:
        progress.at(1)
        progress.at(2)
        raise ValueError("the work's own")
    assert shown == [0.0, 25.0, 50.0, 50.0]
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "progress is not shown: Connection refused",
        *["progress is not shown: too late"] * 2,
    ]  # fmt: skip
