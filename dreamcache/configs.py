"""The settings of adapters, sampling and training, apart from the code that needs torch."""

from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class AdapterConfig(BaseModel):
    """What adapters are and what they read; other values than the defaults are the paper's ablations.

    Sections 4.3 and S3, Tables 4 to 6, S2 and S3.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    integration: Literal["spatial_concat", "spatial_sum", "textual_sum", "decoupled_blocks"] = Field(
        default="spatial_concat", description="how the attention to the cache enters a layer"
    )
    layers: tuple[str, ...] = Field(
        default=("mid", "decoder"), min_length=1, description="encoder, mid, decoder, or layers' dotted module names"
    )
    single_resolution: bool = Field(default=False, description="all layers read the mid block's features alone")
    cache_timestep: int = Field(default=1, ge=0, description="the timestep at which references are cached")
    cache_prompt: str = Field(default="", description="the text of that pass; {subject} stands for the subject's noun")

    @property
    def reads_beside_self_attention(self) -> bool:
        """Whether the attention to the cache is beside a self-attention that reads the same layer, and can start so."""
        return self.integration == "spatial_concat" and not self.single_resolution

    @field_validator("cache_prompt")
    @classmethod
    def _has_no_other_field(cls, prompt: str) -> str:
        if "{" in prompt.replace("{subject}", ""):
            raise ValueError("in cache_prompt, {subject} alone may stand in braces")
        return prompt


class SamplingConfig(BaseModel):
    """How images are sampled; the defaults are the paper's benchmark (Section 4, S4)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    guidance: Literal["combined", "joint"] = "combined"
    guidance_scale: float = Field(default=7.5, ge=0, description="text scale in combined guidance; joint's only one")
    image_guidance_scale: float = Field(default=0.4, ge=0, description="reference's scale in combined guidance")
    steps: int = Field(default=50, ge=1)
    eta: float = Field(default=0.0, ge=0, description="DDIM's share of fresh noise")
    negative_prompt: str | None = Field(
        default=None, description="stands in the unconditional branches, in the null text's place"
    )

    def require_image_scale(self, wanted_by: str) -> None:
        """ValueError for joint guidance, which has no image scale; `wanted_by` is what to leave out then."""
        if self.guidance == "joint":
            raise ValueError(
                f"joint guidance has one scale, guidance_scale, and no image scale: leave out {wanted_by}, or set "
                "evaluation.sampling.guidance=combined"
            )


class LossWeights(NamedTuple):
    """What the errors of the predicted noise are weighted by; at the defaults by nothing, as the paper's (Eq. 6)."""

    min_snr_gamma: float | None = None
    subject_weight: float = 1.0


# Settings that came after adapters had been trained; at these values they change nothing of what is learned.
_LATER = {"share": 1.0, "references": "subject", "subject_weight": 1.0}


class TrainingConfig(BaseModel):
    """How adapters are trained; the defaults are the paper's (Sections 3.3, 4) and, where it is silent, its release's.

    The loss is the mean over the batch of the squared error of the predicted noise (paper Eq. 6).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapters: AdapterConfig = AdapterConfig()
    start: Literal["random", "self-attention"] = Field(
        default="random", description="where attention to the cache begins; self-attention suits short trainings"
    )
    steps: int = Field(default=25_000, ge=1)
    batch_size: int = Field(default=128, ge=1, description="triplets a step, over all accumulated parts")
    accumulation: int = Field(default=1, ge=1, description="equal parts that a step's batch is computed in")
    learning_rate: float = Field(default=1e-5, gt=0)
    warmup_steps: int = Field(default=0, ge=0, description="steps in which the learning rate rises from 0")
    weight_decay: float = Field(default=0.01, ge=0, description="of the attention's weight matrices")
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    caption_dropout: float = Field(default=0.07, ge=0, le=1, description="share of triplets that see the null text")
    augment_references: bool = True
    store_latents: bool = Field(default=True, description="keep targets and captions encoded beside the shards")
    reference_variants: int = Field(
        default=0, ge=0, description="augmented references kept on disk for each triplet; 0: a new one at each visit"
    )
    min_snr_gamma: float | None = Field(default=None, gt=0, description="weights the loss by min(SNR, gamma) / SNR")
    subject_weight: float = Field(
        default=1.0, ge=1, description="of an error on the target's subject, beside 1 on its background"
    )
    ema_decay: float | None = Field(default=None, gt=0, lt=1, description="saves this running average of the weights")
    held_out: float = Field(default=0.05, ge=0, lt=1, description="share never trained on, by hash of a caption's key")
    share: float = Field(
        default=1.0, gt=0, le=1, description="share of the others that is, by hash: smaller ones lie within larger"
    )
    references: Literal["subject", "image"] = Field(
        default="subject", description="image: targets are the references, background and all, as if without masks"
    )
    validation_every: int = Field(default=500, ge=1)
    validation_triplets: int = Field(default=64, ge=2)
    checkpoint_every: int = Field(default=500, ge=1)
    samples_every: int = Field(default=0, ge=0, description="steps between grids of held-out subjects; 0: none")
    seed: int = Field(default=0, ge=0)
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="the backbone's; adapters are float32")

    def content(self) -> dict[str, Any]:
        """The settings that a training is known by: later ones are among them where they are not at their defaults."""
        return {name: value for name, value in self.model_dump().items() if name not in _LATER or value != _LATER[name]}

    @property
    def loss_weights(self) -> LossWeights:
        """What training and held-out losses are weighted by."""
        return LossWeights(self.min_snr_gamma, self.subject_weight)

    @model_validator(mode="after")
    def _parts_are_equal(self) -> "TrainingConfig":
        if self.batch_size % self.accumulation:
            raise ValueError(f"accumulation {self.accumulation} does not divide batch_size {self.batch_size}")
        if self.reference_variants and not self.store_latents:
            raise ValueError("reference_variants need stored latents: set store_latents, or reference_variants=0")
        return self

    @model_validator(mode="after")
    def _can_start_so(self) -> "TrainingConfig":
        if self.start == "self-attention" and not self.adapters.reads_beside_self_attention:
            raise ValueError("start self-attention is for spatial_concat at several resolutions: set start=random")
        return self
