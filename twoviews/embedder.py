"""Features of a user's own images from a trained backbone: as a function, and as a transformer of scikit-learn."""

import functools
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from twoviews import device, runs
from twoviews.images.channels import change_channels
from twoviews.images.inputs import Notes, batches, inputs
from twoviews.images.names import listed, plural
from twoviews.images.pixels import Reading, check_ranges
from twoviews.pretrained import load_backbone, weights_file
from twoviews.probes.embed import at_once
from twoviews.runs import weights

BATCH = 256  # images in one forward pass, at most


@dataclass(frozen=True)
class Features:
    """The result of `Embedder.embed`.

    Args:
        features: (N, embed_dim) float32, one row for each image that could be read, in the order of the images.
        names: of the rows; None: the images were not files.
        skipped: bad images that were left out, each with the reason.
        notes: lines about what was ignored, and about what Pillow warned.
    """

    features: np.ndarray
    names: tuple[str, ...] | None
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Embedder:
    """Turn images into features by a trained backbone. It is a transformer of scikit-learn.

        features = Embedder("simclr-blood_cells-thin32").transform("photos")

    Images may be a folder, a list of paths, images of Pillow, or an array or tensor: (N, H, W), (N, H, W, C) or
    (N, C, H, W), or rows of square images, (N, H*W) or (N, 3*H*W), which scikit-learn can handle. They are read as in
    training: turned by their EXIF data, transparent parts on a background, the central square resized to the size that
    the backbone was trained with. A gray backbone gets the ITU-R 601 luma of colours.

    Args:
        run: a run folder, its name, `latest`, a `.safetensors` file, or the name of a bundled model.
        runs_dir: where `latest` and names are looked for.
        background: colour behind transparent pixels: white, gray or black. None: as in the run's training; white for a
            weights file outside a run folder, and for a bundled model.
        value_range: values of images with more than 8 bits that become black and white. None: as in the run's training,
            where the default is 0 to 1 for floats, 0 to 65535 for integers.
        on_bad: images that cannot be read: `stop` raises an error that lists them; `skip` leaves them out, so that there
            are fewer rows: `embed` returns their names.
        device: auto, cpu, cuda or mps.
        precision: auto, bf16, fp32 or fp64; fp32 gives the features of `load_backbone`.
    """

    def __init__(
        self,
        run: str | Path = "latest",
        *,
        runs_dir: str | Path = "runs",
        background: str | None = None,
        value_range: tuple[float, float] | None = None,
        on_bad: str = "stop",
        device: str = "auto",
        precision: str = "fp32",
    ) -> None:
        # scikit-learn copies an estimator by these values, so they are checked when they are used
        self.run = run
        self.runs_dir = runs_dir
        self.background = background
        self.value_range = value_range
        self.on_bad = on_bad
        self.device = device
        self.precision = precision

    def fit(self, X: Any = None, y: Any = None) -> "Embedder":
        """Read the backbone, and keep to its file: `latest` then means the same run in every later call.

        Args:
            X: images, of which only the form is checked; None: no images.
            y: not used.

        Raises:
            ValueError: if an option, the run or the form of the images is wrong.
        """
        self.file_ = self._file()
        reading = self._reading(self._backbone()[1])
        if X is not None:
            inputs(X, reading)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the features of images, (N, embed_dim) float32.

        Args:
            X: images in any form that the class names.

        Raises:
            ValueError: if an option, the run or an image is wrong; of images, all bad ones are listed.
        """
        return self.embed(X).features

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        """Return the features of images, as `transform`."""
        return self.fit().transform(X)  # X may be an iterator, which can be read once

    def embed(self, images: Any) -> Features:
        """Return the features of images, with their names, and what was left out.

        Args:
            images: in any form that the class names.

        Raises:
            ValueError: as `transform`.
        """
        machine = self._machine()
        module, size = self._backbone()
        reading = self._reading(size)
        source = inputs(images, reading)
        notes, stop = Notes(), self.on_bad == "stop"
        batch_size = at_once(size**2, BATCH)
        blocks = [_forward(module, machine, torch.from_numpy(batch)) for batch in batches(source, batch_size, notes, stop=stop)]
        if notes.bad and (stop or not blocks):
            advice = "repair or remove them, or leave them out with on_bad=skip" if stop else "expected at least one image"
            raise ValueError(f"{source.list_bad(notes.bad)}: {advice}")
        check_ranges(notes.wide, reading, source.where)
        features = torch.cat(blocks)
        if wrong := int((~torch.isfinite(features)).any(1).sum()):
            raise ValueError(f"run={self.run}: {wrong} of {len(features)} images have NaN or infinite features")
        rows = [i for i in range(len(source.items)) if i not in notes.bad]
        names = tuple(source.names[i] for i in rows) if source.names is not None else None
        skipped = tuple(f"{source.name(i)}: {reason}" for i, reason in notes.bad.items())
        warned = (f"{plural(len(found), 'image')}: {kind} ({listed(map(source.name, found))})" for kind, found in notes.warnings.items())
        return Features(features.numpy(), names, skipped, (*(f"ignored: {phrase}" for phrase in source.ignored), *warned))

    def description(self) -> str:
        """Return which backbone is used, of which run."""
        file = getattr(self, "file_", None) or self._file()
        about = weights.read(file)[1]
        name = file.parent.name if file.name == runs.BACKBONE else file.stem
        of = "; ".join(f"{key} {about[key]}" for key in ("recipe", "dataset") if about.get(key))
        return f"{name}: {about['backbone']}, {about['in_channels']} x {about['image_size']} x {about['image_size']} pixels ({of})"

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the columns: h0, h1 and so on."""
        return np.array([f"h{i}" for i in range(_embed_dim(*self._backbone()))], dtype=object)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments of the constructor, by name."""
        return {name: getattr(self, name) for name in _parameters()}

    def set_params(self, **params: Any) -> "Embedder":
        """Change arguments of the constructor.

        Raises:
            ValueError: if there is no such argument.
        """
        for name, value in params.items():
            if name not in _parameters():
                raise ValueError(f"Embedder: no parameter {name!r}: expected {', '.join(_parameters())}")
            setattr(self, name, value)
        vars(self).pop("file_", None)  # of the run before
        return self

    def __repr__(self) -> str:
        """Return the call that makes this object, with the arguments that differ from their defaults."""
        defaults = {name: parameter.default for name, parameter in inspect.signature(type(self)).parameters.items()}
        changed = [f"{name}={value!r}" for name, value in self.get_params().items() if value is not defaults[name]]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_is_fitted__(self) -> bool:
        """Return that `transform` works without `fit`: the backbone is trained."""
        return True

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn asks every estimator: only scikit-learn calls this, so it is installed."""
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type="transformer",
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=[]),
            input_tags=InputTags(three_d_array=True),
            no_validation=True,  # rows are images: their number of columns may differ from call to call
            requires_fit=False,
        )

    def _file(self) -> Path:
        """Return the weights file that `run` stands for."""
        return weights_file(self.run, self.runs_dir)

    def _backbone(self) -> tuple[nn.Module, int]:
        """Return the backbone on its device, and the side of its images in pixels."""
        file = getattr(self, "file_", None) or self._file()
        stat = file.stat() if file.is_file() else None
        machine = self._machine()
        return _load(file, (stat.st_mtime_ns, stat.st_size) if stat else (), machine.device, machine.dtype)

    def _reading(self, size: int) -> Reading:
        if self.on_bad not in ("stop", "skip"):
            raise ValueError(f"on_bad={self.on_bad}: expected stop or skip")
        trained = self._trained_as()
        background = self.background or trained.get("background") or "white"
        limits = self.value_range or trained.get("value_range")
        return Reading(size, background, None if limits is None else (limits[0], limits[1]))

    def _trained_as(self) -> dict[str, Any]:
        """Return the configuration of the run; nothing for weights outside a run folder."""
        file = getattr(self, "file_", None) or self._file()
        return runs.read_config(file.parent) if _in_run_folder(file) else {}

    def _machine(self) -> device.Machine:
        chosen, precision = device.find(self.device), self.precision
        if precision not in ("auto", "bf16", "fp32", "fp64"):
            raise ValueError(f"precision={precision}: expected auto, bf16, fp32 or fp64")
        if precision == "auto":
            precision = "bf16" if device.has_bf16(chosen) else "fp32"
        return device.Machine(torch.device(chosen), torch.get_num_threads(), precision, compile=False)


def embed(run: str | Path, images: Any, **options: Any) -> tuple[tuple[str, ...] | None, np.ndarray]:
    """Return the names and the features of images: `Embedder(run, **options).embed(images)`.

    Args:
        run: a run folder, its name, `latest`, a `.safetensors` file, or the name of a bundled model.
        images: a folder, a list of paths, images of Pillow, an array or a tensor: see `Embedder`.
        options: arguments of `Embedder`.

    Returns:
        (names of the rows, or None if the images are not files; features (N, embed_dim) float32).

    Raises:
        ValueError: as `Embedder.transform`.
    """
    result = Embedder(run, **options).embed(images)
    return result.names, result.features


def _in_run_folder(file: Path) -> bool:
    return file.name == runs.BACKBONE and (file.parent / runs.CONFIG).is_file()


def _parameters() -> list[str]:
    return list(inspect.signature(Embedder).parameters)


@functools.lru_cache(maxsize=4)
def _load(file: Path, state: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, int]:
    """Return a backbone and the side of its images; `state` changes with the file, so that a new one is read again."""
    module = load_backbone(file.parent if _in_run_folder(file) else file)  # of a folder, it also checks that the file is of this run
    module.to(device, dtype).to(memory_format=torch.channels_last)
    return module, int(weights.read(file)[1]["image_size"])


@torch.no_grad()
def _embed_dim(module: nn.Module, size: int) -> int:
    mean = module.get_buffer("mean")
    return int(module(mean.new_zeros(1, len(mean), size, size)).shape[1])


@torch.no_grad()
def _forward(module: nn.Module, machine: device.Machine, images: Tensor) -> Tensor:
    """Return features (n, embed_dim) float32 on the CPU of images (n, 3, H, W) uint8."""
    mean, std = module.get_buffer("mean"), module.get_buffer("std")
    x = change_channels(images, len(mean)).to(mean) / 255
    with machine.autocast():
        h: Tensor = module(((x - mean) / std).contiguous(memory_format=torch.channels_last))
    return h.float().cpu()
