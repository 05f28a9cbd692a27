"""Writes metafile.yml of folders of configs."""

from sift_mm.cli.metafile import main

if __name__ == '__main__':
    main()
