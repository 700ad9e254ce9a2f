"""Where the scoring models lie, and which weights they are; decided without loading any of them."""

import hashlib
import os
import re
from pathlib import Path

# One form of the weights is enough: repositories hold the same ones in several.
_WANTED = ("*.json", "*.txt", "model*.safetensors", "pytorch_model*.bin")


def local_model(location: str | Path) -> Path:
    """The local folder of a transformers model: `location` itself, or its snapshot of the Hub.

    Raises:
        FileNotFoundError: when it is neither; the message names the page and the local-folder way.
    """
    folder = Path(location).expanduser()
    if (folder / "config.json").is_file():
        return folder
    name = str(location)
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise FileNotFoundError(
            f"{location}: no model there; give a folder with config.json and weights, or a name on the Hub"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        snapshot = Path(snapshot_download(name, allow_patterns=list(_WANTED)))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        raise FileNotFoundError(
            f"{name} is not on this machine and could not be fetched{offline}: see https://huggingface.co/{name}, set "
            f"HF_TOKEN if it asks for one, or download it elsewhere and give the local folder ({type(error).__name__})"
        ) from error
    return snapshot


def model_identity(location: str | Path) -> str:
    """The sha256 over a model's weights, configuration and tokenizer files, wherever its folder lies: 64 hex digits.

    Raises:
        FileNotFoundError: when there is no such model, or no weights in its folder.
    """
    folder = local_model(location)
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not weights:
        raise FileNotFoundError(f"{folder}: holds no weights (*.safetensors or *.bin)")
    total = hashlib.sha256()
    for file in sorted([*weights, *folder.glob("*.json"), *folder.glob("*.txt")]):
        total.update(f"{file.name} {_digest(file)}\n".encode())
    return total.hexdigest()


def _digest(file: Path) -> str:
    # In the Hub's cache a large file's real name is its sha256, so that it need not be read again.
    if re.fullmatch("[0-9a-f]{64}", file.resolve().name):
        return file.resolve().name
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
