"""Models on the Hub: which locations name one, and their local copies; no model is loaded here, and no torch."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def is_hub_name(location: str) -> bool:
    """Whether a location has the form of a name on the Hub, OWNER/NAME."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", location) is not None and not location.startswith(".")


def hub_folder(location: str, files: Sequence[str], pinned: bool = False) -> Path:
    """The local copy of files of a model on the Hub; FileNotFoundError says where they are to be had.

    A `pinned` model stays at the commit that is here already, whatever is new on the Hub: so a run's later steps work
    with what its earlier ones were made by.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    revision = None
    if pinned:
        with suppress(OSError, HFValidationError):  # nothing of it is here
            revision = Path(snapshot_download(location, local_files_only=True)).name
    try:
        return Path(snapshot_download(location, revision=revision, allow_patterns=list(files)))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        raise FileNotFoundError(
            f"{location} is not on this machine and could not be fetched{offline}: see https://huggingface.co/{location}"
            ", accept its terms there if it is gated and set HF_TOKEN (or `hf auth login`), or download it elsewhere "
            f"and give the local folder instead ({type(error).__name__})"
        ) from error
