"""The terms under which models may be used, as a dataset's card has to say them."""

from __future__ import annotations

import re
from pathlib import Path

LLAMA = 'Llama {} Community License: if models trained on its output are distributed, their names begin with "Llama"'

# By the beginning of a Hub name, the longest that fits.
KNOWN_TERMS = {
    **{f"meta-llama/Llama-{version}": LLAMA.format(version) for version in ("3.1", "3.2", "3.3")},
    # Version 0.9 has a licence for research alone.
    "stabilityai/stable-diffusion-xl-base-1.0": "CreativeML Open RAIL++-M: no use of the images may go against it",
    "madebyollin/sdxl-vae-fp16-fix": "MIT",
    "IDEA-Research/grounding-dino": "Apache-2.0",
    "ShilongLiu/GroundingDINO": "Apache-2.0",
    "google-bert/bert-base-uncased": "Apache-2.0",
    "facebook/sam-vit": "Apache-2.0",
    "google/owl": "Apache-2.0",
}


def model_terms(location: str) -> str | None:
    """The terms of a model by its Hub name, or by the card in its local folder; None where neither says them."""
    card = Path(location).expanduser() / "README.md"
    if card.is_file():
        text = card.read_text("utf-8", errors="replace")
        found = re.search(r"\A---\s.*?^license(?:_name)?:\s*(\S+)\s*$.*?^---\s*$", text, re.M | re.S)
        return found[1] if found else None
    fitting = [name for name in KNOWN_TERMS if location.startswith(name)]
    return KNOWN_TERMS[max(fitting, key=len)] if fitting else None
