"""Model identity: what the weights are, never where they lie."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards.files import sha256_of

# What from_pretrained can read: weights, configurations, vocabularies. Readmes and pictures change no output.
CONTENT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".json", ".txt", ".model", ".jinja", ".py"}


def model_identity(location: str, name: str = "model") -> str:
    """A model's identity: "sha256:..." over the files of a local folder or file, or "hub:OWNER/NAME@REVISION".

    Raises FileNotFoundError, naming the setting `name`, if the location is neither.
    """
    path = Path(location).expanduser()
    if path.is_file():
        return f"sha256:{_cached_sha256(path)}"
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in CONTENT_SUFFIXES)
        if not files:
            raise FileNotFoundError(f"{name}: the folder {location} holds no model files")
        lines = [f"{file.relative_to(path).as_posix()} {_cached_sha256(file)}\n" for file in files]
        _save_cache()
        return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"
    if not _may_be_on_hub(location):
        raise FileNotFoundError(f"{name}: there is no folder {location}; name a local folder or a Hub model")
    return f"hub:{location}@{hub_revision(location, name)}"


def hub_revision(repository: str, name: str = "model") -> str:
    """The commit of a Hub model: the one in the local cache if there is one, else the newest on the Hub."""
    from huggingface_hub import constants, model_info

    folder = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
    reference = folder / "refs" / "main"
    if reference.is_file() and (folder / "snapshots" / reference.read_text().strip()).is_dir():
        return reference.read_text().strip()
    advice, missing = _advice(repository, name), f"{name}: there is no folder {repository}"
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(f"{missing}, nor is it in the local Hub cache, and HF_HUB_OFFLINE is set; {advice}")
    try:
        return str(model_info(repository).sha)
    except Exception as error:  # the Hub's client raises errors of several families
        problem = type(error).__name__
        raise FileNotFoundError(f"{missing}, and the Hub does not give it ({problem}); {advice}") from None


def pinned(location: str, name: str) -> dict[str, str]:
    """Arguments of `from_pretrained` by which what runs is what `model_identity` named: a Hub model's revision."""
    return {} if Path(location).expanduser().exists() else {"revision": hub_revision(location, name)}


@contextlib.contextmanager
def loading(location: str, name: str) -> Iterator[dict[str, Any]]:
    """Load a model in this block; yields the arguments `pinned`.

    Raises FileNotFoundError, in one line with what to do, for whatever the libraries raise about weights that are
    gated, absent or incomplete; `name` is the setting.
    """
    arguments = pinned(location, name)
    try:
        yield arguments
    except OSError as error:  # the Hub's errors are OSErrors too
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        advice = _advice(location, name) if arguments else f"set {name} to a complete folder"
        raise FileNotFoundError(f"{name}: {location} does not load ({first_line}); {advice}") from error


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


def _advice(repository: str, name: str) -> str:
    return (
        f"accept its terms on https://huggingface.co/{repository} and set HF_TOKEN, "
        f"or download it elsewhere and set {name} to the local folder"
    )


def _may_be_on_hub(location: str) -> bool:
    return location.count("/") == 1 and not location.startswith((".", "/", "~")) and not location.endswith("/")


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
