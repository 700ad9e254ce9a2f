"""Model identity: what the weights are, never where they lie."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.files import sha256_of
from shards.hub import hub_commit, is_hub_name, not_fetched

# What from_pretrained can read: weights, configurations, vocabularies. Readmes and pictures change no output.
CONTENT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".json", ".txt", ".model", ".jinja", ".py"}


def model_identity(location: str, name: str = "model") -> str:
    """A model's identity: "sha256:..." over the files of a local folder or file, or "hub:OWNER/NAME@REVISION".

    Raises FileNotFoundError, naming the setting `name`, if the location is neither, OSError if the Hub is not reached.
    """
    path = Path(location).expanduser()
    if path.is_file():
        digest = _cached_sha256(path)
        _save_cache()
        return f"sha256:{digest}"
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in CONTENT_SUFFIXES)
        if not files:
            raise FileNotFoundError(f"{name}: the folder {location} holds no model files")
        lines = [f"{file.relative_to(path).as_posix()} {_cached_sha256(file)}\n" for file in files]
        _save_cache()
        return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"
    return f"hub:{location}@{_hub_revision(location, name)}"


def pinned(location: str, name: str) -> dict[str, str]:
    """Arguments of `from_pretrained` by which what runs is what `model_identity` named: a Hub model's revision."""
    return {} if Path(location).expanduser().exists() else {"revision": _hub_revision(location, name)}


@contextlib.contextmanager
def loading(location: str, name: str) -> Iterator[dict[str, Any]]:
    """Load a model in this block; yields the arguments `pinned`.

    Raises FileNotFoundError, in one line with what to do, for whatever the libraries raise about weights that are
    gated, absent or incomplete, and OSError where another try may help; `name` is the setting.
    """
    arguments = pinned(location, name)
    try:
        yield arguments
    except OSError as error:  # the Hub's errors are OSErrors too
        if arguments:
            raise not_fetched(location, error, name) from error
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        kind = FileNotFoundError if error.errno in (None, errno.ENOENT) else OSError  # such as a disk that fails
        raise kind(f"{name}: {location} does not load ({first_line}); set {name} to a complete folder") from error


def checkpoint_file(location: str, file: str, name: str) -> Path:
    """The local path of a checkpoint: `location` is the file itself, or a folder or Hub model that holds `file`."""
    path = Path(location).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / file).is_file():
            raise FileNotFoundError(f"{name}: the folder {location} holds no {file}; name one that does, or a file")
        return path / file
    from huggingface_hub import hf_hub_download

    with loading(location, name) as pinned:
        return Path(hf_hub_download(location, file, **pinned))


def _hub_revision(location: str, name: str) -> str:
    if not is_hub_name(location):
        raise FileNotFoundError(f"{name}: there is no folder {location}; name a local folder or a Hub model")
    return hub_commit(location, name)


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dreamcache" / "sha256.json"


_known: dict[str, str] | None = None
_grown = False


def _cached_sha256(path: Path) -> str:
    """The file's SHA-256, remembered by (path, size, modification time): gigabytes are read once, not at each start."""
    global _known, _grown
    if _known is None:
        try:
            _known = {str(key): str(value) for key, value in json.loads(_cache_file().read_bytes()).items()}
        except (OSError, ValueError, AttributeError):
            _known = {}
    status = path.stat()
    key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    if key not in _known:
        _known[key] = sha256_of(path)
        _grown = True
    return _known[key]


def _save_cache() -> None:
    global _grown
    if not _grown or _known is None:
        return
    file = _cache_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f"{file.name}.{os.getpid()}")
        temporary.write_text(json.dumps(_known, indent=0, sort_keys=True))
        temporary.replace(file)
    except OSError:
        return  # only speed is lost
    _grown = False
