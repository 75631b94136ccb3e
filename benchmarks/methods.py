"""Steps of every method beside what their forward passes predict: seconds of a step, without making views.

    python benchmarks/methods.py [--json FILE] [--small]

Each method has the settings of its recipe for two CPU cores, and all have the same network, views of 20 pixels and batch. The prediction
is SimCLR's step, plus a forward pass of the network without gradient for each view of a momentum copy. All take their steps in turns.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from measure import in_turn, parser, save

from twoviews import build, config, device
from twoviews.methods import METHODS

COPIES = {"byol": 2, "moco": 2, "moco_v3": 2, "dino": 2}  # views that a momentum copy sees
FORWARD = "forward without gradient"


def contenders(batch: int, net: str) -> dict[str, Callable[[], Any]]:
    """Return for each method a function that takes one training step on views that are already made; and a forward pass of SimCLR's."""
    found: dict[str, Callable[[], Any]] = {}
    for name in METHODS:
        recipe = {"simclr": "cifar_thin", "supervised": "supervised"}.get(name, f"{name}_thin")
        words = [f"recipe={recipe}", "dataset=fashion_mini", f"backbone={net}", f"batch_size={batch}", "device=cpu", "probe_every=0"]
        words += ["queue_size=1024"] if name in ("moco", "nnclr") else []
        words += ["whitening_size=32", "out_dim=16"] if name == "wmse" and batch < 128 else []
        parts = build.build(config.load("pretrain", words))
        u = parts.views.draw(0, 0, batch).to(parts.machine.dtype)
        views = build.make_views(parts.machine, parts.views)(parts.images[:batch], u)
        found[name] = step_of(parts, views, None if parts.labels is None else parts.labels[:batch])
        if name == "simclr":
            found[FORWARD] = forward_of(parts, views)
    return found


def step_of(parts: build.Parts, views: list[torch.Tensor], labels: torch.Tensor | None) -> Callable[[], None]:
    """Return a function that takes one training step."""
    progress = torch.tensor(0.5)
    parts.method.train()

    def step() -> None:
        with parts.machine.autocast():
            loss, _ = parts.method(views, labels, progress)
        loss.backward()
        parts.method.before_step(progress)
        for group in parts.optimizer.param_groups:
            group["lr"] = 1e-3
        parts.optimizer.step()
        parts.optimizer.zero_grad(set_to_none=True)
        parts.method.after_step(progress)

    return step


def forward_of(parts: build.Parts, views: list[torch.Tensor]) -> Callable[[], None]:
    """Return a function that computes the projections of two views without gradient."""
    module = parts.method.modules_to_probe()["z"]

    def forward() -> None:
        with torch.no_grad(), parts.machine.autocast():
            for x in views:
                module(x)

    return forward


def main() -> int:
    """Print a Markdown table; write JSON if asked."""
    arguments = parser(__doc__, "one turn, batch 32, thin16").parse_args()
    batch, net, turns = (32, "thin16", 2) if arguments.small else (256, "thin32", 8)
    device.keep_freed_memory()
    machine = device.choose(device="cpu", threads=None, precision="auto", compile="auto")
    threads = torch.get_num_threads()
    print(f"{device.cpu_name()}, {threads} threads, {machine.precision}, torch {torch.__version__}; {net}, batch {batch} x 2\n")
    seconds = {name: taken[1:] for name, taken in in_turn(contenders(batch, net), turns)[0].items()}  # the first step allocates
    print("| method | ms a step | min-max | measured / predicted |")
    print("|:--|--:|--:|--:|")
    ratios: dict[str, float] = {}
    for name in METHODS:
        copies = COPIES.get(name, 0) / 2
        predicted = [base + copies * forward for base, forward in zip(seconds["simclr"], seconds[FORWARD], strict=True)]
        ratios[name] = statistics.median(own / other for own, other in zip(seconds[name], predicted, strict=True))
        own = sorted(1000 * s for s in seconds[name])
        print(f"| {name} | {statistics.median(own):.0f} | {own[0]:.0f}-{own[-1]:.0f} | {ratios[name]:.2f} |")
    save(arguments.json, {"cpu": device.cpu_name(), "precision": machine.precision, "seconds": seconds, "ratios": ratios})
    return 0


if __name__ == "__main__":
    sys.exit(main())
