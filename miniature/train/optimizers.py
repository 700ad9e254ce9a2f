"""The optimizer of the trainings: Muon for the matrices inside a network, AdamW for all else.

Muon (Jordan et al. 2024) replaces the momentum of a weight matrix by the nearest semi-orthogonal matrix, so that all
its directions are learned at one pace; on small networks from nothing it needs about half the steps of AdamW.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from miniature.train.arithmetic import multiplies_bfloat16

MATRICES = (nn.Linear, nn.Conv2d)
FEWEST_ROWS = 16  # narrower matrices are first and last layers, which AdamW suits better
STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, about, by Newton-Schulz steps; (N, rows, columns) both."""
    a, b, c = COEFFICIENTS
    found = matrices.bfloat16() if multiplies_bfloat16(matrices.device) else matrices.float()
    tall = found.shape[-2] > found.shape[-1]
    if tall:
        found = found.mT
    found = found / (found.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        gram = found @ found.mT
        found = a * found + (b * gram + c * gram @ gram) @ found
    return (found.mT if tall else found).to(matrices)


class Muon(torch.optim.Optimizer):
    """Muon on weights of any shape (convolutions as rows of kernels), its step as large as AdamW's would be.

    The step's root mean square is 0.2, so that one learning rate and weight decay suit both optimizers
    (Liu et al. 2025, section 2.2).
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # nothing here evaluates the loss again
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if (gradient := parameter.grad) is not None:
                    momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                    momentum.lerp_(gradient, 1 - group["momentum"])
                    ahead = gradient.lerp(momentum, group["momentum"]).flatten(1)
                    rows, columns = ahead.shape
                    alike[rows, columns].append((parameter, ahead))
            for (rows, columns), pairs in alike.items():
                size = 0.2 * max(rows, columns) ** 0.5
                updates = orthogonalized(torch.stack([ahead for _, ahead in pairs]))
                for (parameter, _), update in zip(pairs, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.view_as(parameter), alpha=-group["lr"] * size)


class Optimizers:
    """Muon and AdamW over the trainable parameters of a module, as one."""

    def __init__(self, module: nn.Module, learning_rate: float, weight_decay: float) -> None:
        matrices = {
            layer.weight
            for layer in module.modules()
            if isinstance(layer, MATRICES) and layer.weight.requires_grad and len(layer.weight) >= FEWEST_ROWS
        }
        rest = [p for p in module.parameters() if p.requires_grad and p not in matrices]
        ordered = [p for p in module.parameters() if p in matrices]
        self.both: list[torch.optim.Optimizer] = [Muon(ordered, learning_rate, weight_decay)] if ordered else []
        self.both.append(torch.optim.AdamW(rest, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99)))

    def step(self, learning_rate: float) -> None:
        for optimizer in self.both:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.both]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.both, states, strict=True):
            optimizer.load_state_dict(state)
