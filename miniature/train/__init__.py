"""Training of the miniature's checkpoints: `python -m miniature.train NAME|all`."""
