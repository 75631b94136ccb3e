"""SimCLR on CIFAR-10, as in p3i0t/SimCLR-CIFAR10: `python simclr.py backbone=resnet18`; keys: simclr_config.yml."""

import sys

from twoviews.cli import script

if __name__ == "__main__":
    sys.exit(script(__file__))
