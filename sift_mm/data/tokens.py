"""Files of tokens: a short header, then ids of 16 bits in little endian."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sift_mm.errors import UserError

FORMAT = 'sift_mm tokens 1'
# Bytes of the header: JSON, filled up by spaces.
HEADER = 256
LARGEST = 2**16


@dataclass(frozen=True)
class TokenHeader:
    """Facts about a file of tokens.

    Attributes:
        vocabulary (int): Number of different tokens.
        tokens (int): Tokens in the file.
        bytes (int): Bytes of the text that they stand for.
        documents (int): Documents; each ends in one end token.
        first (int, optional): Bytes of the first token, which no model
            predicts; None in older files.
        tokenizer (str): Fingerprint of the tokenizer; '' in older files.
    """

    vocabulary: int
    tokens: int
    bytes: int
    documents: int
    first: int | None = None
    tokenizer: str = ''


def write_tokens(path: Path, ids: np.ndarray, header: TokenHeader) -> None:
    """Write a file of tokens."""
    text = json.dumps(dict(format=FORMAT) | asdict(header))
    # A run may still read the old file.
    part = path.with_suffix('.part')
    with part.open('wb') as file:
        file.write(text.encode().ljust(HEADER))
        ids.astype('<u2').tofile(file)
    part.replace(path)


def open_tokens(path: Path) -> tuple[np.ndarray, TokenHeader]:
    """Return the ids of a file, mapped into memory, and its header.

    Raises:
        UserError: If the file is missing or damaged.
    """
    advice = 'write it by tools/prepare_text.py FILES... --out DIR.'
    if not path.is_file():
        raise UserError(f'There is no file of tokens {path}: {advice}')
    with path.open('rb') as file:
        start = file.read(HEADER)
    try:
        facts = json.loads(start)
        if facts.pop('format') != FORMAT:
            raise ValueError
        header = TokenHeader(**facts)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f'{path} is no file of tokens: {advice}') from None
    size = path.stat().st_size
    if size != HEADER + 2 * header.tokens:
        raise UserError(
            f'{path} has {size} bytes, and its header says '
            f'{HEADER + 2 * header.tokens}: it is cut off; {advice}'
        )
    ids = np.memmap(path, '<u2', 'r', HEADER, (header.tokens,))
    # Seconds for gigabytes; a run would end at the first such id.
    if (largest := int(ids.max())) >= header.vocabulary:
        raise UserError(
            f'{path} has the token {largest}, and its header says that ids '
            f'end below {header.vocabulary}: it is damaged; {advice}'
        )
    return ids, header
