"""Shows the samples of a dataset with their annotations."""

from sift_mm.cli.browse_dataset import main

if __name__ == '__main__':
    main()
