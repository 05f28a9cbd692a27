"""Checkpoints: state of mask training, reading, writing, compact files."""
