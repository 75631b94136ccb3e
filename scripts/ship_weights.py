"""Put a run's backbone among the nets that come along, in half precision: `twoviews/assets/<method>-<data set>-<backbone>.safetensors`.

    python scripts/ship_weights.py <run folder>

`twoviews.load_backbone` takes the name. Half precision moves no accuracy beyond noise and keeps a thin net under 1 MB.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.torch import save

from twoviews import build, runs

ASSETS = Path(__file__).parent.parent / "twoviews/assets"

if __name__ == "__main__":
    run = Path(sys.argv[1])
    config = runs.config(run)
    tensors, about = build._read_tensors(run / runs.BACKBONE)
    halved = {name: x.half() if x.is_floating_point() else x for name, x in tensors.items()}
    target = ASSETS / f"{config['method']}-{config['dataset']}-{config['backbone']}.safetensors"
    about["sha256"] = build._tensors_seal(halved, about)
    target.write_bytes(save(halved, metadata={"twoviews": json.dumps(about)}))
    print(f"{target}: {target.stat().st_size / 2**20:.2f} MiB")
