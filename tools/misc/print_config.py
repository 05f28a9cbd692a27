"""Print a config with its bases and overrides merged."""

from sift_mm.cli.print_config import main

if __name__ == '__main__':
    main()
