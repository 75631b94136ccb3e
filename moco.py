"""MoCo v2 on CIFAR-10, as in p3i0t/SimCLR-CIFAR10: `python moco.py backbone=resnet18 moco_k=4096 moco_t=0.2`; keys: moco_config.yml."""

import sys

from twoviews.cli import script

if __name__ == "__main__":
    sys.exit(script(__file__))
