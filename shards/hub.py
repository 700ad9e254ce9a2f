"""Models on the Hub: which location names one, which commit of it is meant, and its local copy; nothing is loaded."""

import errno
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from shards.files import replace_file, sha256_of


def is_hub_name(location: str) -> bool:
    """Whether a location has the form of a name on the Hub, OWNER/NAME."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", location) is not None and not location.startswith(".")


def hub_commit(name: str, setting: str | None = None) -> str:
    """The commit of a model on the Hub that this machine works with, 40 hex digits.

    It is the one that the Hub's local cache calls main; where there is none, the newest, which the cache then calls
    so. A model thus stays what it was, whatever is new on the Hub, until any file of it is fetched anew (`hf download
    NAME README.md`).
    Raises FileNotFoundError where the Hub refuses it or HF_HUB_OFFLINE is set, OSError where another try may help; both
    name the `setting` that gave the model.
    """
    from huggingface_hub import model_info

    with suppress(OSError):
        return _commit_file(name).read_text().strip()
    try:
        commit = str(model_info(name).sha)
    except Exception as error:  # the Hub's client raises errors of several families
        raise not_fetched(name, error, setting) from error
    keep_commit(name, commit)
    return commit


def keep_commit(name: str, commit: str) -> None:
    """Have `hub_commit` say so from now on; a cache that cannot be written to forgets."""
    with suppress(OSError):
        _commit_file(name).parent.mkdir(parents=True, exist_ok=True)
        replace_file(_commit_file(name), commit.encode())


def hub_folder(name: str, files: Sequence[str]) -> Path:
    """The local copy of files (patterns) of a model on the Hub, at `hub_commit`; errors as there."""
    from huggingface_hub import snapshot_download

    commit = hub_commit(name)
    try:
        return Path(snapshot_download(name, revision=commit, allow_patterns=list(files)))
    except Exception as error:
        raise not_fetched(name, error) from error


def weights_digest(file: Path) -> str:
    """The sha256 of a model's file."""
    # In the Hub's cache a large file's real name is its sha256, so gigabytes need not be read again.
    name = file.resolve().name
    return name if re.fullmatch("[0-9a-f]{64}", name) else sha256_of(file)


def not_fetched(name: str, error: BaseException, setting: str | None = None) -> OSError:
    """What to raise where a model on the Hub cannot be had: says in one line why, and what to do.

    A FileNotFoundError where another try would end alike (the model or a file of it is absent or gated, or the Hub may
    not be asked), an OSError for a network, a Hub or a disk that fails at times. `setting` gave the model.
    """
    from huggingface_hub import constants

    reason = (str(error).strip().splitlines() or [""])[0].rstrip(". ")
    reason = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    absent = f"{f'{setting}: ' if setting else ''}there is no folder {name}, and"
    by_hand = f"or download it elsewhere and {f'set {setting} to' if setting else 'give'} the local folder"
    if not constants.HF_HUB_OFFLINE and _may_pass(error):
        return OSError(f"{absent} it could not be fetched from the Hub for now ({reason}): try again later, {by_hand}")
    offline = ", and HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
    return FileNotFoundError(
        f"{absent} the Hub does not give it{offline} ({reason}): accept its terms on https://huggingface.co/{name} if "
        f"it is gated and set HF_TOKEN (or `hf auth login`), {by_hand}"
    )


def _may_pass(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is of a connection, a disk or a Hub that is down."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        # The class of the Hub's client's HTTP library, which is not the same one in all its versions.
        unconnected = any(kind.__name__ == "TransportError" for kind in type(error).__mro__)
        if status in (408, 429) or status >= 500 or unconnected or isinstance(error, (ConnectionError, TimeoutError)):
            return True
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            return True
        error = error.__cause__ or error.__context__
    return False


def _commit_file(name: str) -> Path:
    """Where the Hub's local cache keeps which commit of a model it calls main."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "refs", "main")
