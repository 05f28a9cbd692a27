"""Turn text files into the tokens that a GPT trains on.

It trains a byte-level BPE on the training documents and writes train.bin,
val.bin and tokenizer.json into a folder.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sift_mm.cli.arguments import positive
from sift_mm.cli.entry import Parser, entry_point
from sift_mm.data.tokens import LARGEST, TokenHeader, write_tokens
from sift_mm.errors import UserError
from sift_mm.models.tokenizer import (
    END,
    TOKENIZER,
    fingerprint,
    import_tokenizers,
)
from sift_mm.validation import Seed, Share, read

# Ids of single bytes and of the end of a document.
SMALLEST = 257
# Characters to encode at once.
PIECE = 2**16


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description='Turn text files into tokens for a GPT')
    add = parser.add_argument
    add(
        'files',
        nargs='+',
        metavar='FILE',
        help='text file in UTF-8, a document',
    )
    add('--out', required=True, help='folder for tokens and tokenizer')
    add(
        '--vocabulary',
        type=positive,
        default=2048,
        help='tokens of the BPE, at most; GPT-3 has 50257 (default: 2048)',
    )
    add(
        '--separator',
        metavar='TEXT',
        help='line between two documents of a file; by default a file is one '
        'document',
    )
    add(
        '--val-share',
        type=float,
        default=0.05,
        metavar='SHARE',
        help='share of the documents to hold out for validation, drawn at '
        'random (default: 0.05)',
    )
    add('--seed', type=int, default=0, help='seed of that draw (default: 0)')
    args = parser.parse_args(argv)
    if not SMALLEST <= args.vocabulary <= LARGEST:
        parser.error(
            f'--vocabulary is {SMALLEST} to {LARGEST}: 256 bytes, an end '
            'token, and ids of 16 bits'
        )
    return args


def read_documents(
    files: Sequence[str], separator: str | None = None
) -> list[str]:
    """Return the documents of text files.

    Raises:
        UserError: If a file is missing, empty or not in UTF-8, or the
            separator is in none of them.
    """
    found: list[str] = []
    for name in files:
        try:
            text = Path(name).read_bytes().decode('utf-8')
            text = text.removeprefix('\ufeff')  # A byte order mark.
        except UnicodeDecodeError as error:
            raise UserError(
                f'{name} is not in UTF-8 (byte {error.start} is '
                f'{error.object[error.start]:#04x}): convert it, for example '
                'by iconv -t utf-8, or leave it out.'
            ) from None
        except OSError as error:
            raise UserError(
                f'{name} cannot be read ({error.strerror}).'
            ) from None
        if '\0' in text:
            raise UserError(
                f'{name} has zero bytes, as binary files and UTF-16 do: '
                'convert it to UTF-8, or leave it out.'
            )
        parts = [text]
        if separator is not None:
            line = rf'(?m)^{re.escape(separator)}\r?(?:\n|\Z)'
            parts = re.split(line, text)
        parts = [part for part in parts if part.strip()]
        if not parts:
            raise UserError(f'{name} has no text: leave it out.')
        found += parts
    if separator is not None and len(found) <= len(files):
        raise UserError(
            f'No file has the line {separator!r} between two documents; '
            'correct --separator, or leave it out.'
        )
    return found


def hold_out(
    documents: Sequence[str], share: float, seed: int
) -> tuple[list[str], list[str]]:
    """Split documents at random into those of training and of validation.

    Raises:
        UserError: If there are not two documents.
    """
    share = read('--val-share', share, Share)
    number = min(max(round(share * len(documents)), 1), len(documents) - 1)
    if number < 1:
        raise UserError(
            'There is one document, and validation needs another: give '
            'several files, or a --separator.'
        )
    seed = read('--seed', seed, Seed)
    order = np.random.default_rng(seed).permutation(len(documents))
    held = set(order[:number].tolist())
    return (
        [text for i, text in enumerate(documents) if i not in held],
        [documents[i] for i in sorted(held)],
    )


def train_bpe(documents: Sequence[str], vocabulary: int) -> Any:
    """Train a byte-level BPE; the last id is the end of a document."""
    tokenizers = import_tokenizers()
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = level
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary - 1,
        initial_alphabet=sorted(level.alphabet()),
        show_progress=False,
    )
    pieces = (piece for text in documents for piece in cut(text))
    bpe.train_from_iterator(pieces, trainer)
    bpe.add_special_tokens([END])
    return bpe


def cut(text: str) -> Iterator[str]:
    """Yield pieces of about PIECE characters that end with a line.

    Encoding takes about 250 bytes of memory a character (tokenizers 0.23),
    and seconds for a long word. Lines longer than a piece are cut.
    """
    lines: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        for start in range(0, len(line), PIECE):
            lines.append(line[start : start + PIECE])
            size += len(lines[-1])
            if size >= PIECE:
                yield ''.join(lines)
                lines, size = [], 0
    yield ''.join(lines)


def encode(
    bpe: Any, documents: Sequence[str], tokenizer: str = ''
) -> tuple[np.ndarray, TokenHeader]:
    """Return the ids of documents, each with its end token, and the header."""
    bpe.encode_special_tokens = True  # END in a text is text.
    end = bpe.token_to_id(END)
    parts = []
    for text in documents:
        for piece in cut(text):
            parts.append(np.array(bpe.encode(piece).ids, '<u2'))
        parts.append(np.array([end], '<u2'))
    tokens = np.concatenate(parts)
    size = sum(len(text.encode()) for text in documents)
    return tokens, TokenHeader(
        bpe.get_vocab_size(),
        len(tokens),
        size,
        len(documents),
        # A byte-level BPE writes each byte as one character.
        first=len(bpe.id_to_token(int(tokens[0]))),
        tokenizer=tokenizer,
    )


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """Write tokens and tokenizer, and print their sizes."""
    args = parse_args(argv)
    import_tokenizers()
    documents = read_documents(args.files, args.separator)
    train, val = hold_out(documents, args.val_share, args.seed)
    bpe = train_bpe(train, args.vocabulary)
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f'--out {out} cannot be made a folder ({error.strerror}).'
        ) from None
    bpe.save(str(out / TOKENIZER))
    digest = fingerprint(out)
    for name, texts in (('train', train), ('val', val)):
        tokens, header = encode(bpe, texts, digest)
        write_tokens(out / f'{name}.bin', tokens, header)
        print(
            f'{name}.bin: {header.documents} documents, {header.bytes:,} '
            f'bytes, {header.tokens:,} tokens of {header.vocabulary}'
        )


if __name__ == '__main__':
    main()
