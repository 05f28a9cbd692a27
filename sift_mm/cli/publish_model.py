"""Write the checkpoint of a run as a slim file for other runs.

Weights, masks and meta stay; optimizer, schedules and the history of the
masks are dropped. The name of the file has its hash.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sift_mm.checkpoint.compact import compact, plain
from sift_mm.checkpoint.reading import read
from sift_mm.checkpoint.state import (
    CHECKPOINT_KEY,
    check_finite,
    check_masks,
    mask_training,
    with_context,
    with_digest,
)
from sift_mm.checkpoint.writing import written_whole
from sift_mm.cli.entry import Parser, entry_point
from sift_mm.errors import UserError

#: Keys of the mask training; its history is needed only to resume.
KEPT_OF_MASKS = (
    *('version', 'algorithm', 'placement', 'structure', 'seed', 'steps'),
    *('masks', 'groups', 'member', 'budget', 'inputs_first'),
)


def slim(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a checkpoint to publish, under the same keys.

    With an EMAHook, ``state_dict`` has the averaged weights, which are kept.
    Tensors are copied: a view would save its whole storage.

    Raises:
        UserError: If there are no weights under ``state_dict``, if they are
            not finite or not those of the masks, or if the mask training
            cannot be read.
    """
    if 'state_dict' not in checkpoint:
        raise UserError(
            'The file has no key state_dict: it is no checkpoint of a run.'
        )
    check_finite(checkpoint['state_dict'])
    kept: dict[str, Any] = {
        'meta': plain(checkpoint.get('meta', {})),
        'state_dict': {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in checkpoint['state_dict'].items()
        },
    }
    training = mask_training(checkpoint)
    if training is not None:
        check_masks(kept['state_dict'], training['masks'])
        kept[CHECKPOINT_KEY] = with_digest(
            {key: training[key] for key in KEPT_OF_MASKS if key in training}
        )
    return kept


def publish(in_file: str, out_file: Path, small: bool = False) -> Path:
    """Write the slim file, and return its path.

    To the name given, with or without '.pth', '-' and the hash are added. In
    a ``small`` one masked weights are packed.
    """
    checkpoint = read(in_file)
    with with_context(in_file):
        kept = slim(checkpoint)
        if small:
            kept = compact(kept)
    content = io.BytesIO()
    # Into a path, PyTorch would write the path's name too.
    torch.save(kept, content)
    digest = hashlib.sha256(content.getbuffer()).hexdigest()[:8]
    name = out_file.name.removesuffix('.pth')
    final = out_file.with_name(f'{name}-{digest}.pth')
    final.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(final) as stream:
        stream.write(content.getbuffer())
    return final


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """Publish as the command line says."""
    parser = Parser(description='Write a slim checkpoint, with the masks')
    add = parser.add_argument
    add('in_file', help='checkpoint of a run')
    text = 'file to be written; eight digits of its hash are added to the name'
    add('out_file', type=Path, help=text)
    add(
        '--compact',
        action='store_true',
        help='of masked weights, write the active ones and a bit for each; '
        'sift_mm.load_compact() gives the libraries the state_dict',
    )
    args = parser.parse_args(argv)
    final = publish(args.in_file, args.out_file, args.compact)
    size = final.stat().st_size / 2**20
    print(f'Wrote {final} ({size:.1f} MiB).')


if __name__ == '__main__':
    main()
