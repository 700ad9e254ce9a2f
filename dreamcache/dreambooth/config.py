"""The settings of an evaluation, apart from the code that needs torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from dreamcache.configs import SamplingConfig

Protocol = Literal["one-reference", "all-references"]
Variant = Literal["no-adapters", "adapters", "wrong-reference", "copy-paste"]

PREPROCESSING = {
    "clip": "RGB on white, short side to the model's (bicubic), centre crop, CLIP mean and deviation",
    "dino": "RGB on white, short side to 8/7 of the model's (bicubic), centre crop, ImageNet mean and deviation",
}


class EvaluationConfig(BaseModel):
    """What is sampled and how it is scored; the defaults are the paper's benchmark (Section 4)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: Protocol = Field(
        "one-reference", description="score against the fixed reference, or against every real image of the subject"
    )
    images_per_prompt: int = Field(4, ge=1)
    subjects: int | None = Field(None, ge=1, description="only so many subjects, spread over the list")
    prompts: int | None = Field(None, ge=1, description="only so many prompts a subject, spread over the list")
    variants: tuple[Variant, ...] = Field(
        ("no-adapters", "adapters", "wrong-reference", "copy-paste"), min_length=1, description="what is compared"
    )
    seed: int = 0
    sampling: SamplingConfig = SamplingConfig()
