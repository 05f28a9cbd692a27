"""Continue a text by a trained GPT."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor

from sift_mm.cli.arguments import add_config_options, positive
from sift_mm.cli.entry import Parser, entry_point
from sift_mm.config.building import build_trained
from sift_mm.config.checks import check_config
from sift_mm.config.data import leaf_datasets
from sift_mm.config.explain import explained
from sift_mm.config.loading import load_config
from sift_mm.errors import UserError
from sift_mm.models import GPT
from sift_mm.models.tokenizer import (
    END,
    check_tokenizer,
    fingerprint,
    open_tokenizer,
)
from sift_mm.validation import Seed
from sift_mm.validation import read as check


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description='Continue a text by a trained GPT')
    add_config_options(parser)
    add = parser.add_argument
    add('checkpoint', help='path of the checkpoint')
    add('--prompt', required=True, help='text to continue')
    text = 'tokens to add, at most (default: 100)'
    add('--length', type=positive, default=100, metavar='N', help=text)
    add('--seed', type=int, default=0, help='seed of the draws (default: 0)')
    add(
        '--temperature',
        type=float,
        default=1.0,
        help='divisor of the logits; 0 takes the likeliest token (default: 1)',
    )
    text = 'draw from the K likeliest tokens only'
    add('--top-k', type=positive, metavar='K', help=text)
    args = parser.parse_args(argv)
    if not 0 <= args.temperature < float('inf'):
        parser.error('--temperature is a number, at least 0')
    if any('\ud800' <= letter <= '\udfff' for letter in args.prompt):
        parser.error('--prompt is not in UTF-8')
    return args


@torch.no_grad()
def continue_ids(
    model: GPT,
    ids: Sequence[int],
    length: int,
    end: int | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> list[int]:
    """Return a sequence of ids and the ids drawn behind it.

    Args:
        model (GPT): Model in evaluation mode.
        ids (Sequence[int]): Ids of the prompt, at least one.
        length (int): Number of ids to draw, at most.
        end (int, optional): Id at which to stop; it is left out.
        seed (int): Seed of the draws.
        temperature (float): Divisor of the logits; 0 takes the likeliest.
        top_k (int, optional): Number of ids to draw from; None is all.
    """
    generator = torch.Generator().manual_seed(seed)
    found = list(ids)
    for _ in range(length):
        window = torch.tensor([found[-model.context :]])
        new = draw_id(model(window)[0, -1], generator, temperature, top_k)
        if new == end:
            break
        found.append(new)
    return found


def draw_id(
    logits: Tensor,
    generator: torch.Generator,
    temperature: float,
    top_k: int | None,
) -> int:
    """Draw the next id from its logits, see :func:`continue_ids`."""
    best, ids = logits.sort(descending=True)
    if not temperature:
        return int(ids[0])
    # Relative to the likeliest: no temperature makes two infinities.
    best = (best[:top_k].double() - best[0]) / temperature
    place = torch.multinomial(best.softmax(0), 1, generator=generator)
    return int(ids[place])


def load_gpt(cfg: Config, checkpoint: str, tokenizer: str) -> GPT:
    """Build the GPT of a config with the weights of a checkpoint.

    Raises:
        UserError: If the config has no GPT, or the file cannot be read or is
            of another network or tokenizer.
    """
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model, loaded = build_trained(cfg, checkpoint)
    check_tokenizer(loaded, tokenizer)
    if not isinstance(model, GPT):
        raise UserError(
            f'model is a {type(model).__name__}, and only a GPT can continue '
            'a text.'
        )
    return model


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """Print the prompt and its continuation."""
    args = parse_args(argv)
    check('--seed', args.seed, Seed)
    cfg = load_config(args)
    with explained(args.config, cfg):
        check_config(cfg)
        loader: Any = cfg.get('train_dataloader') or {}
        leaf: dict = next(leaf_datasets(loader.get('dataset') or []), {})
        folder = leaf.get('data_root') or '.'
        tokenizer = open_tokenizer(folder)
        model = load_gpt(cfg, args.checkpoint, fingerprint(folder))
        ids = tokenizer.encode(args.prompt).ids
        if not ids:
            raise UserError('--prompt is empty; give a text to continue.')
    options = args.seed, args.temperature, args.top_k
    end = tokenizer.token_to_id(END)
    print(
        tokenizer.decode(continue_ids(model, ids, args.length, end, *options))
    )


if __name__ == '__main__':
    main()
