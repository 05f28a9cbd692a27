"""Tokenizer of prepared text, by the optional package tokenizers."""

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
