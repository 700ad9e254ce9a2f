"""In which format a device multiplies fastest."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 itself; a CPU that does not imitates it, ten times slower than float32."""
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()


@contextmanager
def fast_arithmetic(device: torch.device) -> Iterator[None]:
    """bfloat16 where the device multiplies it faster than float32.

    On a CPU the fused attention's backward pass is slower in bfloat16 than the plain one on these short sequences.
    """
    if not multiplies_bfloat16(device):
        yield
        return
    plain = nullcontext() if device.type == "cuda" else sdpa_kernel(SDPBackend.MATH)
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with plain, torch.autocast(device.type, torch.bfloat16):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)
