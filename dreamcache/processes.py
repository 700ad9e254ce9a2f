"""The processes of one training: one a GPU, as torchrun starts them, or this one alone."""

import datetime
import os
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from shards.processes import end_with_parent


def join_processes() -> torch.device:
    """This process's device, its own GPU or the CPU; where torchrun started it, it meets the other processes first."""
    processes, local_rank = (int(os.environ.get(n, d)) for n, d in (("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if processes > 1:
        end_with_parent()  # torchrun killed by force would leave them training
        # The others wait as long as process 0 prepares or validates, or as another still encodes its last shard.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=datetime.timedelta(days=1))
    return device


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
