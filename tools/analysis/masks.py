"""Print the masks of a checkpoint, by layer and in total."""

from sift_mm.cli.show_masks import main

if __name__ == '__main__':
    main()
