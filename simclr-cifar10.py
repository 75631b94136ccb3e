"""SimCLR on CIFAR-10 as in dkobak/simclr-cifar10, with every evaluation and its table row; keys: recipe=simclr_cifar10."""

import sys

from twoviews.cli import script

if __name__ == "__main__":
    sys.exit(script(__file__))
