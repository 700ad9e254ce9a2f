"""The settings of sampling and training, apart from the code that needs torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SamplingConfig(BaseModel):
    """How images are sampled; the defaults are the paper's benchmark (Section 4, S4)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    guidance: Literal["combined", "joint"] = "combined"
    guidance_scale: float = Field(7.5, ge=0, description="text scale in combined guidance, the only one in joint")
    image_guidance_scale: float = Field(0.4, ge=0, description="reference's scale in combined guidance")
    steps: int = Field(50, ge=1)
    eta: float = Field(0.0, ge=0, description="DDIM's share of fresh noise")
    negative_prompt: str | None = Field(None, description="stands where the paper has the null text")


class TrainingConfig(BaseModel):
    """How adapters are trained; the defaults are the paper's (Section 3.3, 4) and the authors' release's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(25_000, ge=1)
    batch_size: int = Field(128, ge=1, description="triplets a step, over all accumulated parts")
    accumulation: int = Field(1, ge=1, description="parts that a step's batch is computed in; divides batch_size")
    learning_rate: float = Field(1e-5, gt=0)
    warmup_steps: int = Field(0, ge=0, description="steps in which the learning rate rises from 0")
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0)
    caption_dropout: float = Field(0.07, ge=0, le=1, description="share of triplets that see the null text")
    augment_references: bool = True
    reference_variants: int = Field(
        0, ge=0, description="augmented references encoded beforehand a triplet; 0: a new one each time it is seen"
    )
    min_snr_gamma: float | None = Field(None, gt=0, description="weights the loss by min(SNR, gamma) / SNR")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="the saved adapters are this average of the weights")
    held_out: float = Field(0.05, ge=0, lt=1, description="share of triplets never trained on, by hash of the key")
    validation_every: int = Field(500, ge=1)
    validation_triplets: int = Field(64, ge=1)
    checkpoint_every: int = Field(500, ge=1)
    seed: int = 0
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the backbone, not the adapters")
