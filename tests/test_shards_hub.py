"""Errors of the Hub: what another try may help with is told from what would end alike."""

import errno
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError

from shards.hub import not_fetched


def answered(status: int, kind: type[HfHubHTTPError] = HfHubHTTPError) -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind(f"answered {status}", response=response)


def caused(error: Exception, by: Exception, said: str = "__cause__") -> Exception:
    setattr(error, said, by)
    return error


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (answered(408), True),
        (answered(429), True),
        (answered(500), True),
        (answered(502), True),
        (answered(403, GatedRepoError), False),
        (answered(404), False),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (TimeoutError("too long"), True),
        (OSError(errno.ENOSPC, "no space left"), True),
        (FileNotFoundError(errno.ENOENT, "no such file"), False),
        (OSError("no weights in it"), False),
        (caused(EntryNotFoundError("not in the cache"), ConnectionError("no route")), True),
        (caused(EntryNotFoundError("not in the cache"), answered(404)), False),
        (caused(ValueError("no answer"), httpx.ReadError("cut off"), "__context__"), True),
    ],
)
def test_what_may_pass_is_told_from_what_would_end_alike(
    error: Exception, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    told = not_fetched("owner/name", error, "images.model")
    assert isinstance(told, FileNotFoundError) != passes
    assert ("try again later" in str(told)) == passes and "set images.model to the local folder" in str(told)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert isinstance(not_fetched("owner/name", error), FileNotFoundError)
