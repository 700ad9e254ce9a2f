"""The DreamBooth benchmark: cases, embedders, metrics, generation and scoring."""
