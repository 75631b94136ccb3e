"""Steps of every method beside what their forward passes predict: seconds of a step, without making views.

    python benchmarks/methods.py [--json FILE] [--small]

Each method has the settings of its recipe for two CPU cores, and all have the same backbone, views of 20 pixels and batch. The prediction
is the step of SimCLR with the method's network (projector, predictor, sub-batches of BatchNorm) and as many forward passes, plus a forward
pass of that network without gradient for each view of a momentum copy. All take their steps in turns.
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
from twoviews.models.batchnorm import split_batchnorm

COPIES = {"byol": 2, "moco": 2, "moco_v3": 2, "dino": 2}  # views that a momentum copy sees
NETWORK = ("hidden_dims", "out_dim", "hidden_bn", "output_bn")  # keys of the projector
FORWARD = "forward without gradient"


def settings(name: str, batch: int, net: str) -> config.Config:
    """Return the configuration of a method."""
    recipe = {"simclr": "cifar_thin", "supervised": "supervised"}.get(name, f"{name}_thin")
    words = [f"recipe={recipe}", "dataset=fashion_mini", f"backbone={net}", f"batch_size={batch}", "device=cpu", "probe_every=0"]
    words += ["queue_size=1024"] if name in ("moco", "nnclr") else []
    words += ["whitening_size=32", "out_dim=16"] if name == "wmse" and batch < 128 else []
    return config.load("pretrain", words)


def base_of(name: str, cfg: config.Config) -> tuple[str, dict[str, Any]]:
    """Return SimCLR with the network and the forward passes of a method: a name, and what differs from SimCLR's recipe."""
    if "out_dim" not in cfg:  # supervised
        return base_of("simclr", settings("simclr", cfg.batch_size, cfg.backbone))
    changes = {key: cfg[key] for key in NETWORK} | {"one_forward": cfg.get("one_forward", False), "bn_splits": cfg.get("bn_splits", 1)}
    if "predictor_dims" in cfg:
        changes["hidden_dims"] = [*cfg.hidden_dims, cfg.out_dim, *cfg.predictor_dims]
    return "SimCLR with " + " ".join(f"{key}={value}" for key, value in changes.items()), changes


def contenders(batch: int, net: str) -> dict[str, Callable[[], Any]]:
    """Return for each method a function that takes one training step on views that are already made; and such steps of its base."""
    found: dict[str, Callable[[], Any]] = {}
    for name in METHODS:
        cfg = settings(name, batch, net)
        found[name] = made(cfg)[0]
        base, changes = base_of(name, cfg)
        if base not in found:
            found[base], found[f"{base}, {FORWARD}"] = made(config.Config({**settings("simclr", batch, net), **changes}))
    return found


def made(cfg: config.Config) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return functions that take one training step, and that compute the projections of two views without gradient."""
    parts = build.build(cfg)
    if cfg.method == "simclr" and cfg.get("bn_splits", 1) > 1:  # the base of MoCo; its constructor does this by itself
        for module in (parts.method.backbone, parts.method.get_submodule("projector")):
            split_batchnorm(module, cfg.bn_splits)
    u = parts.views.draw(0, 0, cfg.batch_size).to(parts.machine.dtype)
    views = build.make_views(parts.machine, parts.views)(parts.images[: cfg.batch_size], u)
    return step_of(parts, views, None if parts.labels is None else parts.labels[: cfg.batch_size]), forward_of(parts, views)


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
    modules = parts.method.modules_to_probe()
    module = modules.get("z", modules["h"])

    def forward() -> None:
        with torch.no_grad(), parts.machine.autocast():
            for x in views:
                module(x)

    return forward


def main() -> int:
    """Print a Markdown table; write JSON if asked."""
    arguments = parser(__doc__, "one turn, batch 32, thin16").parse_args()
    batch, net, turns = (32, "thin16", 2) if arguments.small else (256, "thin32", 16)
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
        base = base_of(name, settings(name, batch, net))[0]
        predicted = [whole + copies * forward for whole, forward in zip(seconds[base], seconds[f"{base}, {FORWARD}"], strict=True)]
        ratios[name] = statistics.median(own / other for own, other in zip(seconds[name], predicted, strict=True))
        own = sorted(1000 * s for s in seconds[name])
        print(f"| {name} | {statistics.median(own):.0f} | {own[0]:.0f}-{own[-1]:.0f} | {ratios[name]:.2f} |")
    save(arguments.json, {"cpu": device.cpu_name(), "precision": machine.precision, "seconds": seconds, "ratios": ratios})
    return 0


if __name__ == "__main__":
    sys.exit(main())
