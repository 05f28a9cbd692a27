"""Tokenizer of prepared text, by the optional package tokenizers."""

import hashlib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from sift_mm.errors import UserError

# Token behind each document, and the tokenizer's file beside its tokens.
END = '<|endoftext|>'
TOKENIZER = 'tokenizer.json'


def import_tokenizers() -> Any:
    """Return the package tokenizers.

    Raises:
        UserError: If it is not installed.
    """
    try:
        return import_module('tokenizers')
    except ImportError as error:
        raise UserError(
            f'Text needs the package tokenizers ({error}): install it by '
            '`pip install tokenizers`.'
        ) from error


def open_tokenizer(folder: str) -> Any:
    """Return the tokenizer of a folder of tools/prepare_text.py.

    Raises:
        UserError: If there is none, or it cannot be read.
    """
    tokenizers = import_tokenizers()
    path = Path(folder).expanduser() / TOKENIZER
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # The package raises no class of its own.
        raise UserError(
            f'The tokenizer {path} cannot be read ({error}): write it by '
            'tools/prepare_text.py FILES... --out DIR.'
        ) from error


def fingerprint(folder: str | Path) -> str:
    """Return 16 digits that depend on a folder's tokenizer."""
    content = (Path(folder).expanduser() / TOKENIZER).read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


def check_tokenizer(checkpoint: Mapping[str, Any], tokenizer: str) -> None:
    """Refuse a checkpoint whose network was trained on other tokens.

    Args:
        checkpoint (Mapping[str, Any]): The checkpoint. Older ones do not
            name their tokenizer, and pass.
        tokenizer (str): Fingerprint of the tokenizer at hand, '' if unknown.

    Raises:
        UserError: If the fingerprints differ.
    """
    meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    trained = meta.get('tokenizer') if isinstance(meta, dict) else None
    if trained and tokenizer and trained != tokenizer:
        raise UserError(
            f'The checkpoint was trained on tokens of tokenizer {trained}, '
            f'and the data are of {tokenizer}: the ids mean other text. Take '
            'the data of the training, or train again.'
        )
