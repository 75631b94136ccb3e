"""The parts of a run, built from its configuration, and the file that carries its weights."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from twoviews import backbones, device, memory, native, optim, runs
from twoviews.config import Config
from twoviews.data.dataset import Dataset, load, steps_per_epoch
from twoviews.layers import hasten
from twoviews.methods import METHODS
from twoviews.methods.base import Method
from twoviews.probes.embed import embed
from twoviews.views import Views

SHIPPED = {path.stem: path for path in sorted((Path(__file__).parent / "assets").glob("*.safetensors"))}  # nets that come along, by name
WHITEN_IMAGES = 5000  # of the training images, for the statistics of patches


@dataclass
class Parts:
    """Everything that the loop and the read-outs need, built from one configuration."""

    machine: device.Machine
    dataset: Dataset
    views: Views
    method: Method
    optimizer: torch.optim.Optimizer
    images: Tensor  # (N, C, H, W) uint8 on the device: what the method trains on
    labels: Tensor | None  # (N,) on the device, only for a method that uses them
    steps_per_epoch: int
    peak_rate: float

    @property
    def mean(self) -> tuple[float, ...]:
        return self.views.mean

    @property
    def std(self) -> tuple[float, ...]:
        return self.views.std

    def embed(self, module: nn.Module, images: Tensor, name: str = "embed") -> Tensor:
        """Features (N, D) of whole images by a frozen module of this run."""
        how: dict[str, Any] = {"device": self.machine.device, "autocast": self.machine.autocast, "name": name}
        return embed(module, images, mean=self.mean, std=self.std, **how)


def build(cfg: Config) -> Parts:
    """All parts of a run. Weights are a function of the seed.

    Raises:
        ValueError: if a value is out of range or the data cannot be had: before anything is written.
    """
    machine = device.choose(device=cfg.device, threads=cfg.threads, precision=cfg.precision, compile=cfg.compile)
    if machine.device.type == "cpu":
        memory.keep_freed_memory()
        if machine.compile:
            memory.keep_places()
    dataset = load(cfg.dataset, cfg.data_dir, cfg.train_size, image_size=cfg.image_size, on_bad=cfg.on_bad)
    images, labels = dataset.split(cfg.train_on)
    if METHODS[cfg.method].uses_labels and (labels < 0).any():
        raise ValueError(
            f"train_on={cfg.train_on}: {cfg.method} learns from labels, of which test images have none here: expected train+val"
        )
    if cfg.batch_size > len(images):
        raise ValueError(f"batch_size={cfg.batch_size}: {dataset.title} has {len(images)} images in {cfg.train_on}: choose at most that")
    if not cfg.drop_last and len(images) % cfg.batch_size == 1:
        raise ValueError(
            f"drop_last=false: the last batch of an epoch would hold one image (of {len(images)}): change batch_size or drop it"
        )
    views = build_views(cfg, dataset)
    method = placed(machine, build_method(cfg, dataset, _init_file(cfg)))
    peak = optim.resolve_learning_rate(cfg.learning_rate, cfg.base_learning_rate, cfg.batch_size)
    if cfg.min_learning_rate > peak:
        raise ValueError(f"min_learning_rate={cfg.min_learning_rate}: above the peak rate {peak:g}: choose at most that")
    if cfg.warmup_epochs >= cfg.epochs and cfg.warmup_epochs > 0:
        raise ValueError(f"warmup_epochs={cfg.warmup_epochs}: as long as the run ({cfg.epochs} epochs): choose less")
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
    if not cfg.get("init"):
        return None
    return Path(cfg.init) if cfg.init.endswith(".safetensors") else runs.find(cfg.init, Path(cfg.runs_dir)) / runs.BACKBONE


def build_views(cfg: Config, dataset: Dataset) -> Views:
    """The recipe's views of this data set; two of the images' own size unless `view_sizes` says otherwise."""
    channels, height, width = dataset.images.shape[1:]
    mean, std = _normalisation(cfg, dataset)
    keys = [name for name in inspect.signature(Views.__init__).parameters if name in cfg and name != "view_sizes"]
    return Views(
        image_shape=(channels, height, width),
        view_sizes=cfg.view_sizes or (height, height),
        mean=mean,
        std=std,
        **{name: cfg[name] for name in keys},
    )


def views_by(machine: device.Machine) -> str:
    """What makes the views on this machine: `C++`, `torch.compile` or `torch`. They differ by rounding, so the manifest keeps it."""
    if not machine.compile:
        return "torch"
    if machine.device.type == "cpu":
        return "C++" if native.library() is not None else "torch"
    return "torch.compile"


def views_on(machine: device.Machine, views: Views) -> Callable[[Tensor, Tensor], list[Tensor]]:
    """The views as this machine makes them: images and numbers to V tensors."""
    by = views_by(machine)
    if by == "torch.compile":
        return torch.compile(views.__call__, dynamic=False, fullgraph=True)
    return views.on_cpu if by == "C++" else views


def layers_by(machine: device.Machine) -> str:
    """What the layers of a net are on this machine: `C++` (`layers.hasten`) or `torch`'s; kept and compared as `views_by` is."""
    hastened = machine.compile and machine.device.type == "cpu" and machine.precision == "bf16"
    return "C++" if hastened and native.library(native.NORM) is not None else "torch"


def placed(machine: device.Machine, method: Method) -> Method:
    """The method where it is to run, as it runs there fastest; changed in place."""
    method.to(machine.device, machine.dtype).to(memory_format=torch.channels_last)
    if layers_by(machine) == "C++":
        hasten(method)
    return method


def forward_on(machine: device.Machine, method: Method) -> Callable[..., Any]:
    """Forward with loss as this machine runs it: on a GPU one compiled graph, for the backward another."""
    # On a CPU the convolutions are oneDNN's either way, and compiling around them gains nothing (docs/performance.md).
    if not machine.compile or machine.device.type != "cuda":
        return method
    # important: torch 2.14 decides the backward's layout by forward convolutions, which it has none of (pytorch#189239): all would be
    # turned from channels_last and back. Our nets are channels_last from end to end, so nothing is lost by deciding for it.
    return torch.compile(method, dynamic=False, fullgraph=True, options={"force_layout_optimization": True})


def _normalisation(cfg: Config, dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that pixels in [0, 1] are normalised with: the data set's, or none."""
    channels = dataset.images.shape[1]
    return (dataset.mean, dataset.std) if cfg.normalize else ((0.0,) * channels, (1.0,) * channels)


def build_method(cfg: Config, dataset: Dataset, init: Path | None = None) -> Method:
    """The recipe's method around its backbone, untrained: a function of the seed and, where the stem is whitened, of the images.

    The card gives each hyper-parameter that the method's constructor names.

    Args:
        cfg, dataset: of the run.
        init: a run's backbone to start from: loaded before the method is made, which may copy it.
    """
    channels, height = dataset.images.shape[1:3]
    torch.manual_seed(cfg.seed)
    backbone, embed_dim = backbones.build(cfg.backbone, in_channels=channels, image_size=height)
    if cfg.whiten_stem:
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in _normalisation(cfg, dataset))
        images = dataset.split(cfg.train_on)[0]  # not `train`: which images those are depends on labels
        some = images[:: -(-len(images) // WHITEN_IMAGES)]  # spread over the set: an image tree comes class by class
        backbones.whiten_stem(backbone, (some.float() / 255 - mean) / std)
    if init is not None:
        _load_weights(backbone, init)
    parts = {
        "backbone": backbone,
        "embed_dim": embed_dim,
        "num_classes": len(dataset.classes),
        "num_images": len(dataset.split(cfg.train_on)[0]),
    }
    wanted = [name for name in inspect.signature(METHODS[cfg.method].__init__).parameters if name != "self"]
    return METHODS[cfg.method](**{name: parts[name] if name in parts else cfg[name] for name in wanted})


def backbone_bytes(cfg: Config, parts: Parts, run: str) -> bytes:
    """The backbone as a safetensors file that says how to build it and whose it is: torchvision's key names, no prefix.

    Args:
        cfg, parts: of the run.
        run: `runs.identity` of it.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in parts.method.backbone.state_dict().items()}
    channels, height = parts.dataset.images.shape[1:3]
    about = {"backbone": cfg.backbone, "in_channels": str(channels), "image_size": str(height)}
    about |= {name: " ".join(f"{v:.6f}" for v in values) for name, values in (("mean", parts.mean), ("std", parts.std))}
    about |= {"recipe": cfg.recipe, "dataset": parts.dataset.title, "run": run}
    about["sha256"] = _tensors_seal(tensors, about)
    # important: one key, because safetensors writes several in a random order: equal runs would have unequal files
    return safetensors_bytes(tensors, metadata={"twoviews": json.dumps(about)})


def _tensors_seal(tensors: dict[str, Tensor], about: dict[str, str]) -> str:
    """A checksum over names, shapes, types and values of tensors, and over what is said about them."""
    sha = hashlib.sha256(json.dumps({key: value for key, value in about.items() if key != "sha256"}, sort_keys=True).encode())
    for name, x in sorted(tensors.items()):
        sha.update(f"{name} {x.dtype} {tuple(x.shape)}\0".encode())
        sha.update(x.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and what it says about them ({} if another program wrote it).

    Raises:
        ValueError: if there is no such file, or it is damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file: a finished run has one")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            about = json.loads((file.metadata() or {}).get("twoviews", "{}"))
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path}: damaged, or not a safetensors file ({' '.join(str(error).split())[:100]})") from None
    if "sha256" in about and about["sha256"] != _tensors_seal(tensors, about):
        raise ValueError(f"{path}: damaged: its checksum does not hold")
    return tensors, about


def check_weights(path: Path, run: str) -> dict[str, str]:
    """What a run's file of weights says about itself.

    Args:
        path: the file.
        run: `runs.identity` of the run that it should be of.

    Raises:
        ValueError: if it is missing, damaged, or of another run.
    """
    about = _read_tensors(path)[1]
    if run and about.get("run") != run:
        raise ValueError(f"{path}: of another run")
    return about


def load_backbone(run: str | Path) -> nn.Module:
    """The trained backbone of a run, frozen and in eval mode.

    Args:
        run: a run folder, a `.safetensors` file of one, or the name of a net that comes along (`SHIPPED`). Images go in as
            (N, C, H, W) in [0, 1], less `module.mean` over `module.std` (buffers of shape (C, 1, 1)).

    Returns:
        Module from (N, C, H, W) to h (N, embed_dim).

    Raises:
        ValueError: if there is no such file or it is not one of ours.
    """
    path = Path(run) / runs.BACKBONE if Path(run).is_dir() else SHIPPED.get(str(run), Path(run))
    if not path.is_file():
        raise ValueError(f"{path}: no such file: expected a finished run, its file, or one of {', '.join(SHIPPED)}")
    about = check_weights(path, runs.identity(Path(run))) if Path(run).is_dir() else _read_tensors(path)[1]
    if "backbone" not in about:
        raise ValueError(f"{path}: does not say which backbone it holds: not a file of TwoViews")
    module, _ = backbones.build(about["backbone"], in_channels=int(about["in_channels"]), image_size=int(about["image_size"]))
    _load_weights(module, path)
    for name in ("mean", "std"):
        module.register_buffer(name, torch.tensor([float(v) for v in about[name].split()]).view(-1, 1, 1), persistent=False)
    return module.eval().requires_grad_(False)


def _load_weights(module: nn.Module, path: Path) -> None:
    tensors, _ = _read_tensors(path)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path}: does not fit this backbone: {' '.join(str(error).split())[:200]}") from None
