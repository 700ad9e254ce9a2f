"""A small drawn world and the small models trained on it: scenes, subjects and checkpoints that run on a CPU."""
