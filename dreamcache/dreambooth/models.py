"""Where the scoring models lie, and which weights they are; decided without loading any of them."""

import hashlib
from pathlib import Path

from shards.hub import hub_folder, is_hub_name, weights_digest

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
    if folder.exists() or not is_hub_name(name):
        raise FileNotFoundError(
            f"{location}: no model there; give a folder with config.json and weights, or a name on the Hub"
        )
    return hub_folder(name, _WANTED)


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
        total.update(f"{file.name} {weights_digest(file)}\n".encode())
    return total.hexdigest()
