"""Checkpoints: mask training state, reading, writing, compact files."""
