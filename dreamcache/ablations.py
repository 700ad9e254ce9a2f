"""The paper's ablations: the settings and published scores of each row of its tables, and what it finds in them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

LIKENESS, PROMPT = ("clip_i", "dino"), ("clip_t",)
# Scores nearer than this, in CLIP-I and CLIP-T alike, are close: one training of each says little about their order.
CLOSE = 0.005
ADAPTERS = "training.adapters."
INTEGRATION, LAYERS = ADAPTERS + "integration", ADAPTERS + "layers"


class Line(NamedTuple):
    """A row of one of the paper's tables: the settings in which it differs from the table's baseline, which has none.

    `clip_i` and `clip_t` are the published scores, `millions` the published trained parameters; None where the paper
    gives none.
    """

    name: str
    label: str
    settings: Mapping[str, Any] = {}
    clip_i: float | None = None
    clip_t: float | None = None
    millions: int | None = None

    @property
    def adapters(self) -> dict[str, Any]:
        """The settings of the adapters alone, as `AdapterSet.for_unet` takes them."""
        return {
            name.removeprefix(ADAPTERS): value for name, value in self.settings.items() if name.startswith(ADAPTERS)
        }


class Table(NamedTuple):
    """One of the paper's tables; `common` are settings of all of its lines."""

    title: str
    lines: tuple[Line, ...]
    common: Mapping[str, Any] = {}
    note: str = ""

    @property
    def baseline(self) -> Line:
        """The line that the others are compared with."""
        return next(line for line in self.lines if not line.settings)

    def close(self) -> list[Line]:
        """The baseline, and the lines whose published scores are close to its."""
        base = self.baseline
        return [
            line
            for line in self.lines
            if line is base or (_near(line.clip_i, base.clip_i) and _near(line.clip_t, base.clip_t))
        ]


class Finding(NamedTuple):
    """What the paper finds in a table: of each pair of lines, the first scores higher than the second."""

    table: str
    text: str
    metrics: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]


def _near(first: float | None, second: float | None) -> bool:
    return first is not None and second is not None and abs(first - second) <= CLOSE + 1e-9


# A start from the self-attention is for the paper's own adapters alone, so where others are compared all start afresh.
_FRESH = {"training.start": "random"}
_FRESH_NOTE = "All of these start from random weights, whatever the start of the other tables."
# No setting, but how many times the profile's image scale a line is sampled at.
IMAGE_SCALE = "image_scale_times"

TABLES: dict[str, Table] = {
    "integration": Table(
        "Integration of the features (paper Table 4)",
        (
            Line("textual-sum", "textual sum", {INTEGRATION: "textual_sum"}, 0.788, 0.282, 19),
            Line("spatial-sum", "spatial sum", {INTEGRATION: "spatial_sum"}, 0.812, 0.293, 16),
            Line("decoupled-blocks", "decoupled blocks", {INTEGRATION: "decoupled_blocks"}, 0.808, 0.3, 61),
            Line("spatial-concat", "spatial concat (default)", {}, 0.810, 0.298, 25),
        ),
        _FRESH,
        _FRESH_NOTE,
    ),
    "layers": Table(
        "Cached layers (paper Table 5)",
        (
            Line("encoder", "encoder", {LAYERS: ("encoder",)}, 0.721, 0.303, 11),
            Line("encoder-mid", "encoder, mid", {LAYERS: ("encoder", "mid")}, 0.749, 0.306, 19),
            Line("mid", "mid", {LAYERS: ("mid",)}, 0.716, 0.302, 8),
            Line("decoder", "decoder", {LAYERS: ("decoder",)}, 0.799, 0.296, 17),
            Line("mid-decoder", "mid, decoder (default)", {}, 0.810, 0.298, 25),
            Line("all-layers", "encoder, mid, decoder", {LAYERS: ("encoder", "mid", "decoder")}, 0.813, 0.297, 36),
        ),
    ),
    "text": Table(
        "Text in the cache (paper Table 6)",
        (
            Line("text-in-cache", "with text", {ADAPTERS + "cache_prompt": "a photo of a {subject}"}, 0.811, 0.295),
            Line("text-free", "text-free (default)", {}, 0.810, 0.298),
        ),
    ),
    "data": Table(
        "Size and kind of the training data (paper Table 7)",
        (
            Line("data-eighth", "an eighth of it (the paper's 50K)", {"training.share": 0.125}, 0.781, 0.304),
            Line("data-half", "a half (200K)", {"training.share": 0.5}, 0.797, 0.301),
            Line("data-all", "all of it (400K, default)", {}, 0.810, 0.298),
            Line("with-background", "background left in (LAION 5M)", {"training.references": "image"}, 0.814, 0.242),
        ),
        note="Smaller sizes lie within larger ones, and all train for as many steps. The paper's last row is of other "
        "images; here the same targets are references as they are, background and all.",
    ),
    "timestep": Table(
        "Timestep of the cache (paper Table S3)",
        (
            Line("t-1", "1 (default)"),
            Line("t-150", "150", {ADAPTERS + "cache_timestep": 150}),
            Line("t-300", "300", {ADAPTERS + "cache_timestep": 300}),
        ),
    ),
    "resolutions": Table(
        "Resolutions of the cache (paper Table S2)",
        (
            Line("mid-resolution", "mid's resolution alone", {ADAPTERS + "single_resolution": True}),
            Line("several-resolutions", "each layer's own (default)"),
        ),
        _FRESH,
        f"{_FRESH_NOTE} A mid block of 2 x 2, as the miniature's, proves little.",
    ),
    "image-scale": Table(
        "Image scale (paper Figure S2)",
        (
            Line("scale-quarter", "a quarter", {IMAGE_SCALE: 0.25}),
            Line("scale-half", "a half", {IMAGE_SCALE: 0.5}),
            Line("scale-default", "the profile's (default)"),
            Line("scale-double", "double", {IMAGE_SCALE: 2.0}),
        ),
        note="The default's adapters, sampled with other weights of the reference.",
    ),
}  # fmt: skip

FINDINGS = (
    Finding("integration", "concatenation keeps to the prompt better than sums", PROMPT,
            (("spatial-concat", "spatial-sum"), ("spatial-concat", "textual-sum"))),
    Finding("integration", "concatenation is more like the subject than a sum at the text attention", LIKENESS,
            (("spatial-concat", "textual-sum"),)),
    Finding("layers", "the default layers beat fewer", LIKENESS,
            tuple(("mid-decoder", fewer) for fewer in ("encoder", "encoder-mid", "mid", "decoder"))),
    Finding("layers", "all layers are a little better still", LIKENESS, (("all-layers", "mid-decoder"),)),
    Finding("text", "text in the cache costs fidelity to the prompt", PROMPT, (("text-free", "text-in-cache"),)),
    Finding("data", "more data brings likeness", LIKENESS, (("data-all", "data-half"), ("data-half", "data-eighth"))),
    Finding("data", "more data costs a little fidelity to the prompt", PROMPT,
            (("data-half", "data-all"), ("data-eighth", "data-half"))),
    Finding("data", "references with their background bring likeness", LIKENESS, (("with-background", "data-all"),)),
    Finding("data", "references with their background cost fidelity to the prompt", PROMPT,
            (("data-all", "with-background"),)),
    Finding("timestep", "the least noisy timestep is the best", LIKENESS, (("t-1", "t-150"), ("t-1", "t-300"))),
    Finding("resolutions", "several resolutions beat one", LIKENESS, (("several-resolutions", "mid-resolution"),)),
    Finding("image-scale", "a higher image scale keeps more of the subject", LIKENESS,
            (("scale-double", "scale-default"), ("scale-default", "scale-half"), ("scale-half", "scale-quarter"))),
    Finding("image-scale", "a higher image scale costs fidelity to the prompt", PROMPT,
            (("scale-default", "scale-double"), ("scale-half", "scale-default"), ("scale-quarter", "scale-half"))),
)  # fmt: skip
