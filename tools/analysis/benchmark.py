"""Time the network of a config, dense and on sparse kernels."""

from sift_mm.cli.benchmark import main

if __name__ == '__main__':
    main()
