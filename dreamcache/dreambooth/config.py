"""The settings of an evaluation, apart from the code that needs torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dreamcache.configs import SamplingConfig

Protocol = Literal["one-reference", "all-references"]
Compared = Literal["no-adapters", "adapters", "wrong-reference", "ip-adapter", "copy-paste"]
Variant = Literal[Compared, "given"]
Background = Literal["white", "grey", "black"]

PREPROCESSING = {
    "clip": "RGB on white, short side to the model's (bicubic), centre crop, CLIP mean and deviation",
    "dino": "RGB on white, short side to 8/7 of the model's (bicubic), centre crop, ImageNet mean and deviation",
    "dinov2": "RGB on white, short side to 8/7 of 224 (bicubic), centre crop, ImageNet mean and deviation",
}
# The first is scored always; the second where its model is named in the evaluation.
EMBEDDINGS = {"embeddings": ("dino", "clip"), "dinov2": ("dinov2",)}


class EvaluationConfig(BaseModel):
    """What is sampled and how it is scored; the defaults are the paper's benchmark (Section 4)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: Protocol = Field(
        "one-reference", description="score against the fixed reference, or against every real image of the subject"
    )
    images_per_prompt: int = Field(4, ge=1)
    subjects: int | None = Field(None, ge=1, description="only so many subjects, spread over the list")
    prompts: int | None = Field(None, ge=1, description="only so many prompts a subject, spread over the list")
    variants: tuple[Compared, ...] = Field(
        ("no-adapters", "adapters", "wrong-reference", "copy-paste"), min_length=1, description="what is compared"
    )
    ip_adapter_scale: float = Field(0.6, ge=0, le=1, description="of the variant ip-adapter's reference")
    masked_metrics: bool = Field(False, description="also score the subjects cut out: MDINO and MCLIP-I (paper S2.1)")
    min_box_score: float = Field(0.3, ge=0, le=1, description="a subject whose box scores less counts as not found")
    background: Background = Field("white", description="what masked metrics put in the background's place")
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the backbone that makes the images")
    sampling: SamplingConfig = SamplingConfig()

    @model_validator(mode="after")
    def _ip_adapter_is_guided(self) -> "EvaluationConfig":
        if "ip-adapter" in self.variants and self.sampling.guidance_scale <= 1:
            needs = f"needs sampling.guidance_scale above 1, not {self.sampling.guidance_scale:g}"
            raise ValueError(f"the variant ip-adapter {needs}: raise it, or leave the variant out")
        return self


class SweepConfig(BaseModel):
    """The scales that the run's adapters are also evaluated at, one at a time (paper Fig. S2); empty lists: none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_scales: tuple[float, ...] = Field((), description="image scales, each at the evaluation's text scale")
    text_scales: tuple[float, ...] = Field((), description="text scales, each at the evaluation's image scale")
    subjects: int | None = Field(8, ge=1, description="only so many subjects, spread over the list")
    prompts: int | None = Field(5, ge=1, description="only so many prompts a subject, spread over the list")

    def points(self) -> dict[str, tuple[str, float]]:
        """The sampling setting and its value of every point, by the point's name, such as "image-0.4"."""
        scales = {"image": ("image_guidance_scale", self.image_scales), "text": ("guidance_scale", self.text_scales)}
        return {f"{kind}-{value:g}": (name, value) for kind, (name, values) in scales.items() for value in values}

    def configured(self, config: EvaluationConfig, point: str) -> EvaluationConfig:
        """A point's evaluation: of the adapters alone, one image a prompt, all else as in `config`."""
        name, value = self.points()[point]
        data = config.model_dump() | {"variants": ("adapters",), "images_per_prompt": 1, "masked_metrics": False}
        data |= {"subjects": self.subjects, "prompts": self.prompts, "sampling": data["sampling"] | {name: value}}
        return EvaluationConfig.model_validate(data)
