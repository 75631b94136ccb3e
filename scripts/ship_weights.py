"""Add a run's backbone to the bundled models, in half precision: `twoviews/assets/<method>-<data set>-<backbone>.safetensors`.

    python scripts/ship_weights.py <run folder>

`twoviews.load_backbone` loads it by that name. Half precision halves the file, and changes no accuracy beyond noise.
"""

from __future__ import annotations

import sys
from pathlib import Path

from twoviews import runs
from twoviews.runs import weights
from twoviews.runs.files import write_atomic

ASSETS = Path(__file__).parent.parent / "twoviews/assets"

if __name__ == "__main__":
    run = Path(sys.argv[1])
    config = runs.read_config(run)
    tensors, description = weights.read(run / runs.BACKBONE)
    halved = {name: x.half() if x.is_floating_point() else x for name, x in tensors.items()}
    target = ASSETS / f"{config['method']}-{config['dataset']}-{config['backbone']}.safetensors"
    write_atomic(target, weights.to_bytes(halved, description))
    print(f"{target}: {target.stat().st_size / 2**20:.2f} MiB")
