"""Checkpoints of other programs as a start: torchvision, timm, lightly, solo-learn, MoCo, and others that name a ResNet's layers alike."""

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twoviews.runs import weights
from twoviews.runs.checkpoint import MAGIC

# `nn.Sequential(*resnet.children())` numbers the layers: of torchvision's ResNet, and of lightly's ResNetGenerator.
CHILDREN: tuple[dict[str, str], ...] = (
    {},
    {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"},
    {"0": "conv1", "1": "bn1", "2": "layer1", "3": "layer2", "4": "layer3", "5": "layer4"},
)
COUNTER = "num_batches_tracked"  # of BatchNorm: checkpoints of old PyTorch versions lack it, and nothing here reads it
SHOWN = 4  # names in a message


@dataclass(frozen=True)
class Match:
    """Which tensors of a checkpoint belong to a backbone.

    Args:
        tensors: by the backbone's names.
        prefix: what the checkpoint writes before them, such as `module.encoder_q.`.
        missing: names of the backbone that the checkpoint does not have, or has in another shape.
        shapes: (in the checkpoint, in the backbone) of those that have another shape, by name.
        unused: names after the prefix that the backbone does not have, such as `fc.weight`.
    """

    tensors: dict[str, Tensor]
    prefix: str
    missing: list[str]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    unused: list[str]


def read(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint; names of nested dicts are joined by dots.

    Args:
        path: a safetensors file, or one that `torch.save` wrote.

    Raises:
        ValueError: if it is neither, is damaged, or holds objects that could run code when they are read.
    """
    if path.suffix == ".safetensors":
        return weights.read(path)[0]
    try:
        with path.open("rb") as file:
            head = file.read(len(MAGIC))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
    if head == MAGIC:
        raise ValueError(f"{path}: a checkpoint of TwoViews: its weights are init={path.parent}; resume={path.parent} continues the run")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a file is an archive of TorchScript: it is refused below
            found = dict(_flat(torch.load(path, map_location="cpu", weights_only=True), ""))
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise errors of many kinds
        problem = " ".join(str(error).split())
        if "Weights only load failed" in problem and "Unsupported operand" not in problem:
            advice = "save its weights alone with torch.save(model.state_dict(), file)"
            raise ValueError(f"{path}: holds Python objects, which could run any code when they are read: {advice}") from None
        raise ValueError(f"{path}: damaged, or no checkpoint of PyTorch ({problem[:100]})") from None
    if not found:
        raise ValueError(f"{path}: holds no tensors")
    return found


def _flat(content: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix.rstrip("."), content
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from _flat(value, f"{prefix}{name}.")


def match(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Match:
    """Return which tensors of a checkpoint belong to a backbone, by their names and shapes.

    Of several networks in one checkpoint, such as MoCo's two encoders, the one that fits best is taken, and of equal ones the first.

    Args:
        own: `state_dict` of the backbone.
        found: from `read`.
    """
    return max((_matched(own, _renamed(found, children)) for children in CHILDREN), key=lambda one: len(one.tensors))


def _renamed(found: Mapping[str, Tensor], children: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors by torchvision's names: of numbered layers, and of shortcuts."""

    def name(old: str) -> str:
        new = re.sub(r"(?:^|(?<=\.))(\d+)(?=\.)", lambda number: children.get(number[1], number[1]), old, count=1) if children else old
        return new.replace(".shortcut.", ".downsample.")

    return {name(old): tensor for old, tensor in found.items()}


def _matched(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Match:
    counts: Counter[str] = Counter()
    for name, tensor in found.items():
        parts = name.split(".")
        for start in range(len(parts)):
            rest = ".".join(parts[start:])
            if rest in own and own[rest].shape == tensor.shape:
                counts[name.removesuffix(rest)] += 1
    prefix = counts.most_common(1)[0][0] if counts else ""
    named = {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}
    fitting = {name: named[name] for name, x in own.items() if name in named and named[name].shape == x.shape}
    shapes = {name: (tuple(named[name].shape), tuple(x.shape)) for name, x in own.items() if name in named and name not in fitting}
    missing = [name for name in own if name not in fitting and not name.endswith(COUNTER)]
    unused = sorted(name for name in named if name not in own and not name.endswith(COUNTER))
    return Match(fitting, prefix, missing, shapes, unused)


def start_from(backbone: nn.Module, path: Path) -> str:
    """Load weights of TwoViews or of another program into a backbone; of another program, return a line that says which matched.

    Args:
        backbone: with torchvision's key names.
        path: of a file.

    Raises:
        ValueError: if it cannot be read, or does not fit.
    """
    own = path.suffix == ".safetensors" and "backbone" in weights.read(path)[1]
    line = load_into(backbone, path)
    return "" if own and "random" not in line and "not used" not in line else line


def load_into(backbone: nn.Module, path: Path) -> str:
    """Load a checkpoint of another program into a backbone, and return a line that says which weights matched.

    The first convolution may have another shape there, as ImageNet's differs from that for small images: it then keeps its random
    values. Everything else must fit.

    Args:
        backbone: with torchvision's key names.
        path: a safetensors file, or one that `torch.save` wrote.

    Raises:
        ValueError: as `read`, or if the layers are not those of the backbone.
    """
    own = backbone.state_dict()
    fitting = match(own, read(path))
    stem = "conv1.weight"
    lacking = [name for name in fitting.missing if not (name == stem and stem in fitting.shapes)]
    deeper = [name for name in fitting.unused if name.startswith("layer")]
    if lacking or deeper:
        says = f"lacks {_listed(lacking)}" if lacking else f"also has {_listed(deeper)}"
        if other := [name for name in lacking if name in fitting.shapes]:
            there, here = ("x".join(map(str, shape)) for shape in fitting.shapes[other[0]])
            says = f"has {other[0]} of {there}, expected {here}"
        raise ValueError(f"init={path}: not this backbone: it {says}: choose the backbone= and the image_size= of the checkpoint")
    backbone.load_state_dict(fitting.tensors, strict=False)
    wanted = [name for name in own if not name.endswith(COUNTER)]
    text = f"init={path}: {len(wanted) - len(fitting.missing)} of {len(wanted)} weights matched"
    text += f", whose names begin with {fitting.prefix}" if fitting.prefix else ""
    if stem in fitting.shapes:
        there, here = ("x".join(map(str, shape)) for shape in fitting.shapes[stem])
        text += f"; {stem} keeps its initial values, because it is {there} there and {here} here"
    return text + (f"; not used: {_listed(fitting.unused)}" if fitting.unused else "")


def _listed(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
