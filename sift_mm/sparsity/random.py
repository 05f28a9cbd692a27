"""Randomness without state."""

import hashlib

import torch


def generator_for(seed: int, step: int, name: str) -> torch.Generator:
    """A generator that depends on (seed, step, parameter name) only.

    Every rank and every resumed run draws the same numbers, and nobody has
    to broadcast or save a state. It lives on the CPU, because the stream of
    a GPU generator depends on the model of the GPU.
    """
    key = f'{seed}/{step}/{name}'.encode()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    # manual_seed takes a signed 64-bit integer.
    return torch.Generator().manual_seed(int.from_bytes(digest, 'big') >> 1)
