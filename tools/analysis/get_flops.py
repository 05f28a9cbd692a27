"""Print the costs of a network, by layer and for its whole training."""

from sift_mm.cli.get_flops import main

if __name__ == '__main__':
    main()
