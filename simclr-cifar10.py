"""The second seed: SimCLR on CIFAR-10, every read-out, its table row: `python simclr-cifar10.py`; keys: recipe=simclr_cifar10."""

import sys

from twoviews.cli import script

if __name__ == "__main__":
    sys.exit(script(__file__))
