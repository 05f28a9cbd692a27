"""Writes the iso-FLOP table: every member against the dense network."""

from sift_mm.cli.isoflop_table import main

if __name__ == '__main__':
    main()
