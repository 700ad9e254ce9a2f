"""The processes of one training: one a GPU, as torchrun starts them, or this one alone."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def process_count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Which of them this is, from 0; process 0 alone writes files."""
    return dist.get_rank() if process_count() > 1 else 0


def mean_over_processes(tensors: Sequence[Tensor]) -> None:
    """Replace tensors, of one dtype and the same shapes in every process, by their mean over the processes."""
    if process_count() == 1:
        return
    together = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(together)
    together /= process_count()
    for tensor, part in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


@torch.no_grad()
def copy_from_first_process(tensors: Iterable[Tensor]) -> None:
    """Give every process the tensors of process 0."""
    if process_count() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def wait_for_all() -> None:
    """Return once every process has come here."""
    if process_count() > 1:
        dist.barrier()
