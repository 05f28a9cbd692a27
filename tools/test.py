"""Test a checkpoint."""

from sift_mm.cli.test import main

if __name__ == '__main__':
    main()
