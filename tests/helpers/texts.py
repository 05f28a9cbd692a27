"""Text in tokens, without a tokenizer, and a GPT as small as they get."""

from pathlib import Path

import numpy as np

from sift_mm.data.tokens import TokenHeader, write_tokens

SMALL = dict(vocabulary=16, context=8, layers=2, d_model=16, d_ff=64, heads=4)


def mini_text(root: Path, train: int = 200, val: int = 30) -> Path:
    """Write tokens that count up by one or two; each stands for two bytes."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, number in (('train', train), ('val', val)):
        ids = rng.integers(1, 3, number).cumsum() % SMALL['vocabulary']
        header = TokenHeader(SMALL['vocabulary'], number, 2 * number, 1)
        write_tokens(root / f'{name}.bin', ids, header)
    return root
