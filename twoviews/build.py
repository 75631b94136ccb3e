"""From the configuration to the parts of a run: machine, data, views, method, optimiser.

This is the only module that knows the C++ fast path (`cpu/`). Without that package, or without a compiler, the parts are
plain PyTorch.
"""

import contextlib
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from twoviews import device, distributed, foreign, optim, runs
from twoviews.config import Config, view_differences
from twoviews.data.arrays import Arrays
from twoviews.data.dataset import Dataset, prepare, steps_per_epoch
from twoviews.inputs import build_views, check, load_data, normalisation
from twoviews.methods import METHODS, arguments
from twoviews.methods.base import Method
from twoviews.models.batchnorm import sync_batchnorm
from twoviews.models.resnet import build_backbone, whiten_stem
from twoviews.pretrained import BUNDLED
from twoviews.probes.embed import at_once, embed, frozen
from twoviews.rng import seeded
from twoviews.runs import weights
from twoviews.views import Views

FROM_DATA = ("backbone", "embed_dim", "num_classes", "num_images", "num_views", "num_full_views")  # arguments that are not keys
EMBEDDED = 250  # images whose views are made at a time; this bounds the memory
LEAST_SAMPLE = 200  # images; statistics of fewer say little: RankMe is at most their number
WHITEN_IMAGES = 5000  # training images from which the statistics of patches are computed


@dataclass
class Parts:
    """Everything that training and evaluation need, built from one configuration."""

    machine: device.Machine
    dataset: Dataset
    views: Views
    method: Method
    optimizer: torch.optim.Optimizer
    images: Tensor  # (N, C, H, W) uint8 on the device: what the method trains on
    labels: Tensor | None  # (N,) on the device, only for a method that uses them
    steps_per_epoch: int
    peak_rate: float

    def sample(self, most: int) -> Tensor:
        """Return at most so many images (n, C, H, W) uint8 of `val`, or of all training images if `val` is small."""
        images = self.dataset.split("val")[0]
        images = images if len(images) >= LEAST_SAMPLE else self.dataset.split("train+val")[0]
        return images[:: -(-len(images) // most)]

    def embed(self, module: nn.Module, images: Tensor, name: str = "embed") -> Tensor:
        """Return features (N, D) of whole images by a frozen module of this run. Every process computes its part."""
        device, autocast = self.machine.device, self.machine.autocast

        def of(part: Tensor) -> Tensor:
            return embed(module, part, mean=self.views.mean, std=self.views.std, device=device, autocast=autocast, name=name)

        return distributed.in_parts(of, images)

    @torch.no_grad()
    def embed_views(self, module: nn.Module, images: Tensor, count: int, *, seed: int, step: int) -> list[Tensor]:
        """Return features of the first `count` views, as training draws them, by a frozen module of this run.

        The views are made by torch, a few images at a time: a compiled function would be compiled again for their number.

        Args:
            module: (n, C, H, W) to (n, D).
            images: (n, C, H, W) uint8.
            count: the number of views; at most all that the recipe has are returned.
            seed, step: that the views are drawn for.

        Returns:
            One tensor (n, D) float32 on the CPU for each view.
        """
        device, found, most = self.machine.device, [], at_once(math.prod(images.shape[2:]), EMBEDDED)
        with frozen(module), self.machine.autocast():
            for start in range(0, len(images), most):
                part = images[start : start + most].to(device)
                u = self.views.draw(seed, step, len(part), start).to(device, self.machine.dtype)
                found.append([module(view).float().cpu() for view in self.views(part, u)[:count]])
        return [torch.cat(parts) for parts in zip(*found, strict=True)]


def build(cfg: Config, data: Arrays | None = None, *, trains: bool = True) -> Parts:
    """Build all parts of a run. Weights are a function of the seed.

    Args:
        cfg: of the run.
        data: images and labels; None: those of `cfg.dataset`.
        trains: whether the processes of the run must be able to share its batches.

    Raises:
        ValueError: if a value is out of range or the data cannot be read: before anything is written.
    """
    given_to_method(cfg, dict.fromkeys(FROM_DATA))  # a missing key is reported before the data are read
    machine = device.choose(
        device=cfg.device,
        threads=cfg.threads,
        precision=cfg.precision,
        compile=cfg.compile,
        deterministic=bool(cfg.get("deterministic")),  # runs of version 0.1.0 lack this key
    )
    dataset = distributed.first_on_each_machine(lambda: load_data(cfg)) if data is None else prepare(data, cfg.train_size)
    images, labels = dataset.training(cfg.train_on, labelled=METHODS[cfg.method].uses_labels)
    peak = optim.resolve_learning_rate(cfg.learning_rate, cfg.base_learning_rate, cfg.batch_size)
    with contextlib.nullcontext() if trains else distributed.alone():
        check(cfg, dataset, len(images), bool((labels < 0).any()))
        method = to_device(build_method(cfg, dataset, _init_file(cfg)), machine)
    views = build_views(cfg, dataset)
    optimizer = optim.build(
        method.param_groups(),
        optimizer=cfg.optimizer,
        momentum=cfg.momentum,
        nesterov=cfg.nesterov,
        weight_decay=cfg.weight_decay,
        decay_norms=cfg.decay_norms,
        compile=machine.compile and machine.device.type == "cuda",
    )
    return Parts(
        machine=machine,
        dataset=dataset,
        views=views,
        method=method,
        optimizer=optimizer,
        images=images.to(machine.device),
        labels=labels.to(machine.device) if method.uses_labels else None,
        steps_per_epoch=steps_per_epoch(len(images), cfg.batch_size, drop_last=cfg.drop_last),
        peak_rate=peak,
    )


def _init_file(cfg: Config) -> Path | None:
    """Return the weights that `init` names: a file, a bundled model or a run."""
    if not cfg.get("init"):
        return None
    path = Path(cfg.init) if Path(cfg.init).exists() else BUNDLED.get(cfg.init, Path(cfg.init))
    if path.is_file():
        return path
    also = f", weights file or bundled model ({', '.join(BUNDLED)})"
    return runs.find(cfg.init, Path(cfg.runs_dir), key="init", also=also) / runs.BACKBONE


def build_method(cfg: Config, dataset: Dataset, init: Path | None = None) -> Method:
    """Return the recipe's method around its backbone, untrained: a function of the seed and, with `whiten_stem`, of the images.

    Args:
        cfg, dataset: of the run.
        init: weights to start from; loaded before the method is built, which may copy the backbone.

    Raises:
        ValueError: if the recipe lacks a key that the method's constructor names.
    """
    channels, height = dataset.images.shape[1:3]
    stem_init = cfg.get("stem_init")  # runs of version 0.1.0 lack this key
    images = dataset.training(cfg.train_on, labelled=METHODS[cfg.method].uses_labels)[0]
    with seeded(cfg.seed):
        backbone, embed_dim = build_backbone(cfg.backbone, in_channels=channels, image_size=height, stem_init=stem_init)
        if cfg.whiten_stem:
            mean, std = (torch.tensor(v).view(-1, 1, 1) for v in normalisation(cfg, dataset))
            some = images[:: -(-len(images) // WHITEN_IMAGES)]  # spread over the set: an image folder is sorted by class
            whiten_stem(backbone, (some.float() / 255 - mean) / std)
        if init is not None and (matched := foreign.start_from(backbone, init)):
            print(matched)
        sizes = cfg.view_sizes or [height] * len(view_differences(cfg))
        full = sum(size == max(sizes) for size in sizes)
        parts = dict(zip(FROM_DATA, (backbone, embed_dim, len(dataset.classes), len(images), len(sizes), full), strict=True))
        method = METHODS[cfg.method](**given_to_method(cfg, parts))
    if cfg.get("sync_bn") and distributed.size() > 1:
        sync_batchnorm(method)
    return method


def given_to_method(cfg: Config, parts: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the method's constructor: of `parts` and of the recipe's keys, those that it names.

    Raises:
        ValueError: if the recipe lacks a key that the constructor names.
    """
    names = arguments(METHODS[cfg.method])
    if missing := [name for name in names if name not in parts and name not in cfg]:
        raise ValueError(
            f"method={cfg.method}: needs the key {missing[0]}, which recipe={cfg.recipe} does not set: "
            "choose a recipe of this method, or add the key to the recipe (and to base.yaml and config/schema.py if it is new)"
        )
    return {name: parts[name] if name in parts else cfg[name] for name in names}


def _cpu(name: str) -> ModuleType | None:
    """Return a module of the package `cpu`, or None where that package is missing."""
    try:
        return importlib.import_module(f"twoviews.cpu.{name}")
    except ModuleNotFoundError:
        return None


def views_backend(machine: device.Machine) -> str:
    """Return what computes the views: `cpp`, `inductor` (torch.compile) or `torch`. They round differently; the manifest names it."""
    if machine.compile and machine.device.type == "cpu":
        return "cpp" if (cpu := _cpu("views")) and cpu.library() else "torch"
    return "inductor" if machine.compile else "torch"


def make_views(machine: device.Machine, views: Views) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """Return the function from images and random numbers to V views, by the backend of this machine."""
    backend = views_backend(machine)
    if backend == "cpp" and (cpu := _cpu("views")):
        found: Callable[[Tensor, Tensor], list[Tensor]] = cpu.maker(views)
        return found
    return torch.compile(views.__call__, dynamic=False, fullgraph=True) if backend == "inductor" else views


def layers_backend(machine: device.Machine) -> str:
    """Return what computes the backbone's layers on a CPU: `cpp` (bfloat16 only) or `torch`. They round differently."""
    wanted = machine.compile and machine.device.type == "cpu" and machine.precision == "bf16"
    return "cpp" if wanted and (cpu := _cpu("batchnorm")) and cpu.library() else "torch"


def to_device(method: Method, machine: device.Machine) -> Method:
    """Move a method to the machine's device and dtype, in channels_last, and use the fast path if there is one."""
    method.to(machine.device, machine.dtype).to(memory_format=torch.channels_last)
    if layers_backend(machine) == "cpp" and (cpu := _cpu("resnet")):
        cpu.use_fast_path(method)
    return method


def inductor_options() -> dict[str, str | int | bool | Callable[..., Any]]:
    """Return the options with which the forward pass is compiled for a GPU."""
    # important: torch 2.14 chooses the layout of the backward graph by its forward convolutions, of which it has none
    # (pytorch#189239). It would convert every tensor from channels_last and back, so the layout is forced.
    options = {"force_layout_optimization": True, "triton.mix_order_reduction": False}  # with it, torch 2.14 fails on MoCo's backward graph
    return {name: value for name, value in options.items() if name in torch._inductor.list_options()}


def make_forward(machine: device.Machine, method: Method, batch_size: int) -> Callable[..., Any]:
    """Return the function from views to the loss: on a GPU compiled (one graph forward, one backward), else the method itself.

    Gradients are means over the processes. The smaller last batch of an epoch (`drop_last=false`) is not compiled: that would take
    as long again as the first compilation.

    Args:
        machine, method: of the run.
        batch_size: images of this process in a full batch.
    """
    # On a CPU, oneDNN computes the convolutions either way, and compiling the rest gains nothing (docs/performance.md).
    if not machine.compile or machine.device.type != "cuda":
        return distributed.data_parallel(method)
    compiled: Any = torch.compile(method, dynamic=False, fullgraph=True, options=inductor_options())
    module = distributed.data_parallel(compiled)  # not the other way round: torch cannot compile the code of the wrapper into one graph

    def forward(views: list[Tensor], labels: Tensor | None, progress: Tensor) -> Any:
        with contextlib.nullcontext() if len(views[0]) == batch_size else torch.compiler.set_stance("force_eager"):
            return module(views, labels, progress)

    return forward


def backbone_bytes(cfg: Config, parts: Parts, run: str) -> bytes:
    """Return the backbone as a safetensors file with torchvision's key names and a description.

    Args:
        cfg, parts: of the run.
        run: `runs.identity` of it.
    """
    channels, height = parts.dataset.images.shape[1:3]
    description = {"backbone": cfg.backbone, "in_channels": str(channels), "image_size": str(height)}
    description |= {name: " ".join(f"{v:.6f}" for v in values) for name, values in (("mean", parts.views.mean), ("std", parts.views.std))}
    description |= {"recipe": cfg.recipe, "dataset": parts.dataset.title, "run": run}
    return weights.to_bytes(parts.method.modules_to_probe()["h"].state_dict(), description)
