"""How the attention to the feature cache enters a layer: the paper's way, and those it was compared with (Table 4).

Each way is a class of the same shape: its trainable weights, the module of the layer whose output it changes, what can
be worked out once a cache, the query, and the change. A fresh adapter of any kind changes nothing, yet all its tensors
have moved after three training steps.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Place = Literal["self-attention", "text attention", "block"]


@dataclass(frozen=True)
class LayerShape:
    """The sizes that one layer's adapter takes over from the U-Net: width d, the cached tensor's channels, heads."""

    width: int
    context_width: int
    heads: int


class ConditioningAdapter(nn.Module):
    """One layer's trainable weights, here those of the attention to the cache alone (paper Eq. 3 and 4).

    A conditioned module's output o becomes o + s * change, with s the strength: exactly o at s = 0.
    """

    place: ClassVar[Place]

    def __init__(self, shape: LayerShape, generator: torch.Generator | None = None) -> None:
        super().__init__()
        width, context = shape.width, shape.context_width
        self.shape = shape
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Linear(width, width)
        with torch.no_grad():
            for linear in (self.to_q, self.to_k, self.to_v, self.to_out):
                _uniform(linear, generator)
            self.to_out.bias.uniform_(-(width**-0.5), width**-0.5, generator=generator)

    def prepared(self, own: nn.Module, context: Tensor) -> dict[str, Tensor]:
        """All that does not depend on the image under generation, in the dtype of `context` (R, M, C), the cache."""
        return {
            "norm_weight": self.norm.weight.to(context),
            "norm_bias": self.norm.bias.to(context),
            "query": self.to_q.weight.to(context),
            "keys": F.linear(context, self.to_k.weight.to(context)),
            "values": F.linear(context, self.to_v.weight.to(context)),
        }

    @staticmethod
    def query(prepared: dict[str, Tensor], inputs: Tensor, output: Tensor) -> Tensor:
        """The query (B, N, d), from the conditioned module's input and output, (B, N, d) both."""
        normed = F.layer_norm(inputs, inputs.shape[-1:], prepared["norm_weight"], prepared["norm_bias"])
        return F.linear(normed, prepared["query"])

    @staticmethod
    def change(prepared: dict[str, Tensor], output: Tensor, attended: Tensor) -> Tensor:
        """The change (B, N, d) to the module's output, given the attention's result for the query."""
        raise NotImplementedError


class SpatialConcat(ConditioningAdapter):
    """The paper's: self-attention a and attention to the cache a_c, concatenated and projected (Eq. 5).

    With [W_a | W_c] and b the projection, the change is (W_a - I) a + W_c a_c + b, where `to_out` is folded into W_c.
    The projection starts as [I | 0] with zero bias.
    """

    place: ClassVar[Place] = "self-attention"

    def __init__(self, shape: LayerShape, generator: torch.Generator | None = None) -> None:
        super().__init__(shape, generator)
        self.proj = nn.Linear(2 * shape.width, shape.width)
        with torch.no_grad():
            self.proj.weight.zero_()
            self.proj.weight[:, : shape.width].fill_diagonal_(1.0)
            self.proj.bias.zero_()

    def prepared(self, own: nn.Module, context: Tensor) -> dict[str, Tensor]:
        from_self, from_cache = self.proj.weight.split(self.shape.width, dim=1)
        identity = torch.eye(self.shape.width, dtype=from_self.dtype, device=from_self.device)
        return super().prepared(own, context) | {
            "from_self": (from_self - identity).to(context),
            "from_cache": (from_cache @ self.to_out.weight).to(context),
            "bias": (self.proj.bias + from_cache @ self.to_out.bias).to(context),
        }

    @staticmethod
    def change(prepared: dict[str, Tensor], output: Tensor, attended: Tensor) -> Tensor:
        change = F.linear(output, prepared["from_self"], prepared["bias"])
        return change + F.linear(attended, prepared["from_cache"])


class SpatialSum(ConditioningAdapter):
    """Self-attention and attention to the cache are summed: the change is W_out a_c + b_out, which start at zero."""

    place: ClassVar[Place] = "self-attention"

    def __init__(self, shape: LayerShape, generator: torch.Generator | None = None) -> None:
        super().__init__(shape, generator)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def prepared(self, own: nn.Module, context: Tensor) -> dict[str, Tensor]:
        return super().prepared(own, context) | {
            "out": self.to_out.weight.to(context),
            "out_bias": self.to_out.bias.to(context),
        }

    @staticmethod
    def change(prepared: dict[str, Tensor], output: Tensor, attended: Tensor) -> Tensor:
        return F.linear(attended, prepared["out"], prepared["out_bias"])


class TextualSum(ConditioningAdapter):
    """IP-Adapter's way: the text attention's own query reads the cache too, and both results are summed.

    Keys and values alone are trained; query and output projection are the frozen text attention's. `to_v` starts at
    zero.
    """

    place: ClassVar[Place] = "text attention"

    def __init__(self, shape: LayerShape, generator: torch.Generator | None = None) -> None:
        super().__init__(shape, generator)
        del self.norm, self.to_q, self.to_out
        nn.init.zeros_(self.to_v.weight)

    def prepared(self, own: nn.Module, context: Tensor) -> dict[str, Tensor]:
        return {
            "query": own.get_parameter("to_q.weight"),
            "keys": F.linear(context, self.to_k.weight.to(context)),
            "values": F.linear(context, self.to_v.weight.to(context)),
            "out": own.get_parameter("to_out.0.weight"),
        }

    @staticmethod
    def query(prepared: dict[str, Tensor], inputs: Tensor, output: Tensor) -> Tensor:
        return F.linear(inputs, prepared["query"])

    @staticmethod
    def change(prepared: dict[str, Tensor], output: Tensor, attended: Tensor) -> Tensor:
        return F.linear(attended, prepared["out"])


class DecoupledBlocks(SpatialSum):
    """ViCo's way: a block of its own after the layer's, with attention to the cache and a gated feed-forward part.

    Both parts are residual and normalized first; their last linear maps start at zero.
    """

    place: ClassVar[Place] = "block"

    def __init__(self, shape: LayerShape, generator: torch.Generator | None = None) -> None:
        super().__init__(shape, generator)
        width = shape.width
        self.norm_ff = nn.LayerNorm(width)
        self.ff_in = nn.Linear(width, 8 * width)
        self.ff_out = nn.Linear(4 * width, width)
        with torch.no_grad():
            _uniform(self.ff_in, generator)
            for zero in (self.ff_in.bias, self.ff_out.weight, self.ff_out.bias):
                zero.zero_()

    def prepared(self, own: nn.Module, context: Tensor) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        for name, module in (("norm_ff", self.norm_ff), ("ff_in", self.ff_in), ("ff_out", self.ff_out)):
            weights |= {name: module.weight.to(context), f"{name}_bias": module.bias.to(context)}
        return super().prepared(own, context) | weights

    @staticmethod
    def query(prepared: dict[str, Tensor], inputs: Tensor, output: Tensor) -> Tensor:
        return ConditioningAdapter.query(prepared, output, output)

    @staticmethod
    def change(prepared: dict[str, Tensor], output: Tensor, attended: Tensor) -> Tensor:
        change = SpatialSum.change(prepared, output, attended)
        hidden = F.layer_norm(output + change, output.shape[-1:], prepared["norm_ff"], prepared["norm_ff_bias"])
        hidden, gate = F.linear(hidden, prepared["ff_in"], prepared["ff_in_bias"]).chunk(2, dim=-1)
        return change + F.linear(hidden * F.gelu(gate), prepared["ff_out"], prepared["ff_out_bias"])


INTEGRATIONS: dict[str, type[ConditioningAdapter]] = {
    "spatial_concat": SpatialConcat,
    "spatial_sum": SpatialSum,
    "textual_sum": TextualSum,
    "decoupled_blocks": DecoupledBlocks,
}


def _uniform(linear: nn.Linear, generator: torch.Generator | None) -> None:
    bound = linear.in_features**-0.5
    linear.weight.uniform_(-bound, bound, generator=generator)
