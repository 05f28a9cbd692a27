"""Tools that change checkpoints."""
