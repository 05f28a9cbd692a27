"""Turn text files into the tokens that a GPT trains on."""

from sift_mm.cli.prepare_text import main

if __name__ == '__main__':
    main()
