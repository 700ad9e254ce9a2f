"""Pictures of a training's progress: held-out subjects without and with their reference."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from dreamcache.adapters import AdapterSet
from dreamcache.cache import cache_reference
from dreamcache.configs import SamplingConfig
from dreamcache.reference import reference_image
from dreamcache.sampling import sample_images
from shards.files import written_at_once

if TYPE_CHECKING:
    from dreamcache.backbone import Backbone
    from shards.triplets import Triplet

# Joint guidance, since its one scale suits every backbone; few steps, since nobody judges details here.
SAMPLING = SamplingConfig(guidance="joint", steps=20)


def save_sample_grid(backbone: "Backbone", adapters: AdapterSet, triplets: Sequence["Triplet"], path: Path) -> None:
    """Write a PNG with a row a triplet: its reference, its caption's plain image, its caption's personalized image.

    Row n is sampled from seed n at every call, so that grids of one training differ by the adapters alone.
    """
    size = backbone.image_size
    references = [reference_image(triplet.image, triplet.mask, size) for triplet in triplets]
    captions = [triplet.caption for triplet in triplets]
    subjects = [str(triplet.record.get("subject", "")) for triplet in triplets]
    cache = cache_reference(backbone, references, **adapters.cache_settings(subjects))
    columns = (
        references,
        sample_images(backbone, None, None, captions, SAMPLING),
        sample_images(backbone, adapters, cache, captions, SAMPLING),
    )
    grid = Image.new("RGB", (len(columns) * size, len(triplets) * size))
    for x, images in enumerate(columns):
        for y, image in enumerate(images):
            grid.paste(image, (x * size, y * size))
    path.parent.mkdir(exist_ok=True)
    with written_at_once(path) as file:
        grid.save(file, format="PNG")
