"""Write the checkpoint of a run as a slim file for other runs."""

from sift_mm.cli.publish_model import main

if __name__ == '__main__':
    main()
