"""Random numbers without a saved state."""

import hashlib

import torch


def generator_for(seed: int, step: int, name: str) -> torch.Generator:
    """Return a generator that depends on seed, step and parameter name only.

    Every rank and every resumed run draws the same numbers, without a state to
    broadcast or save. The generator is on the CPU, because the numbers of a
    GPU generator depend on the GPU model.
    """
    key = f'{seed}/{step}/{name}'.encode()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    # manual_seed takes a signed 64-bit integer.
    return torch.Generator().manual_seed(int.from_bytes(digest, 'big') >> 1)
