"""The taxonomy that the caption stage of the miniature draws its requests from, as a file beside the checkpoints."""

import json
from pathlib import Path

from miniature.grammar import taxonomy


def write_taxonomy(checkpoints: Path) -> None:
    checkpoints.mkdir(parents=True, exist_ok=True)
    (checkpoints / "taxonomy.json").write_text(json.dumps(taxonomy(), indent=1) + "\n")
