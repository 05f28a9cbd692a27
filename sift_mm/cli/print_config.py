"""Print a config with its bases and overrides merged."""

from collections.abc import Sequence
from pathlib import Path

from sift_mm.cli.arguments import add_config_options
from sift_mm.cli.entry import Parser, entry_point
from sift_mm.config.explain import explained
from sift_mm.config.loading import load_config

SUFFIXES = ('.py', '.json', '.yml')


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """Print, and on request save, the whole config."""
    parser = Parser(description='Print the whole config')
    add_config_options(parser)
    parser.add_argument(
        '--save-path', help='also write it to this .py, .json or .yml file'
    )
    args = parser.parse_args(argv)
    path = args.save_path
    if path is not None and not path.endswith(SUFFIXES):
        parser.error(f'--save-path has to end in {", ".join(SUFFIXES)}')
    cfg = load_config(args)
    with explained(args.config, cfg):
        text = cfg.pretty_text
    print(f'Config:\n{text}')
    if path is not None:
        Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
        cfg.dump(path)
        print(f'Saved to {path}')


if __name__ == '__main__':
    main()
