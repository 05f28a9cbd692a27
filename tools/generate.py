"""Continue a text by a trained GPT."""

from sift_mm.cli.generate import main

if __name__ == '__main__':
    main()
