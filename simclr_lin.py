"""Linear evaluation of the newest matching run, backbone frozen: `python simclr_lin.py backbone=resnet18`; keys: simclr_config.yml."""

import sys

from twoviews.cli import script

if __name__ == "__main__":
    sys.exit(script(__file__))
