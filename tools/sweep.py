"""Train a dense network and members of the Sparse-IFT family beside it."""

from sift_mm.cli.sweep import main

if __name__ == '__main__':
    main()
