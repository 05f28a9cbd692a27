"""Data sets: where they lie, how to get them."""
