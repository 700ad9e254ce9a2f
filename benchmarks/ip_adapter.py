"""diffusers' IP-Adapter with random weights, to measure beside our own conditioning."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from dreamcache.cache import UNet

# What CLIP ViT-H makes of an image, and the tokens that IP-Adapter makes of that.
IMAGE_WIDTH, IMAGE_TOKENS = 1024, 4


def ip_adapter(unet: UNet) -> Callable[[], AbstractContextManager[None]]:
    """Make an IP-Adapter for a U-Net; the context that is returned puts it in, with a random image for every row.

    Its arithmetic is that of diffusers' pipelines: in each U-Net call the image's embedding is projected to tokens
    and every cross-attention reads them beside the text. The image encoder, run once an image, is not part of it.
    """
    from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
    from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

    own = dict(unet.attn_processors)
    width = unet.config.cross_attention_dim
    processors = dict(own)
    for name in own:
        attention = unet.get_submodule(name.removesuffix(".processor"))
        if name.endswith("attn2.processor"):
            made = IPAdapterAttnProcessor2_0(attention.to_q.out_features, width, num_tokens=(IMAGE_TOKENS,))
            processors[name] = made.to(unet.device, unet.dtype).requires_grad_(False)
    projection = MultiIPAdapterImageProjection([ImageProjection(IMAGE_WIDTH, width, IMAGE_TOKENS)])
    projection = projection.to(unet.device, unet.dtype).requires_grad_(False)
    image = torch.randn(1, 1, IMAGE_WIDTH, device=unet.device, dtype=unet.dtype)

    def with_image(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "added_cond_kwargs": {"image_embeds": [image.expand(args[0].shape[0], -1, -1)]}}

    @contextmanager
    def installed() -> Iterator[None]:
        hook = unet.register_forward_pre_hook(with_image, with_kwargs=True)
        unet.set_attn_processor(dict(processors))
        unet.encoder_hid_proj = projection
        unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
        try:
            yield
        finally:
            hook.remove()
            unet.set_attn_processor(dict(own))
            unet.encoder_hid_proj = None
            unet.register_to_config(encoder_hid_dim_type=None)

    return installed
