"""Prepares the data sets that the configs train on, and checks them."""

from sift_mm.cli.prepare_data import main

if __name__ == '__main__':
    main()
