"""Train the model of an MMDetection, MMSegmentation or MMPreTrain config."""

from sift_mm.cli.train import main

if __name__ == '__main__':
    main()
