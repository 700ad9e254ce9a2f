"""Makes the triplets: captions, dedup, images, masks, gates, assembly; one stage a file, shard in, shard out."""
