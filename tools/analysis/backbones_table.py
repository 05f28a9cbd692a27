"""Writes the table of backbones: what SparseIFT makes of each."""

from sift_mm.cli.backbones_table import main

if __name__ == '__main__':
    main()
