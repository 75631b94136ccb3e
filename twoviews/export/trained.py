"""What is exported: a trained backbone and what its run says about it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from twoviews import runs
from twoviews.models.resnet import has_imagenet_stem
from twoviews.pretrained import load_backbone, weights_file
from twoviews.runs import weights


@dataclass(frozen=True)
class Trained:
    """A trained backbone.

    Args:
        file: its weights.
        about: the description in that file: backbone, in_channels, image_size, mean, std, recipe, dataset.
        summary, manifest, config: of its run; {} for a weights file outside a run folder.
    """

    file: Path
    about: dict[str, str]
    summary: dict[str, Any]
    manifest: dict[str, Any]
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the run, or of the weights file."""
        return self.file.resolve().parent.name if self.file.name == runs.BACKBONE else self.file.stem

    @property
    def backbone(self) -> str:
        """Name of the architecture."""
        return self.about["backbone"]

    @property
    def channels(self) -> int:
        """C of the images."""
        return int(self.about["in_channels"])

    @property
    def size(self) -> int:
        """Height and width of the images, in pixels."""
        return int(self.about["image_size"])

    @property
    def imagenet_stem(self) -> bool:
        """Whether the first convolution is that of torchvision's ResNets."""
        return has_imagenet_stem(self.backbone, self.size)

    def numbers(self, name: str) -> list[float]:
        """Return `mean` or `std` of the normalisation, one number for each channel."""
        return [float(value) for value in self.about[name].split()]

    @cached_property
    def module(self) -> nn.Module:
        """The backbone, frozen and in eval mode: normalised images (N, C, H, W) to h (N, embed_dim)."""
        return load_backbone(self.file.parent if self.summary else self.file)

    @cached_property
    def embed_dim(self) -> int:
        """D of h."""
        return int([x for x in self.module.state_dict().values() if x.ndim == 1][-1].numel())


def read(run: str, runs_dir: str | Path) -> Trained:
    """Return what a name stands for.

    Args:
        run: a run folder, its name, `latest`, a `.safetensors` file, or the name of a bundled model.
        runs_dir: where `latest` and names are looked for.

    Raises:
        ValueError: if there is no such run, it has not finished, or it is damaged.
    """
    file = weights_file(run, runs_dir)
    about = weights.read(file)[1]
    if "backbone" not in about:
        raise ValueError(f"run={run}: {file} does not say which backbone it holds: not written by TwoViews")
    folder = file.parent
    if file.name != runs.BACKBONE or not (folder / runs.CONFIG).is_file():
        return Trained(file, about, {}, {}, {})
    return Trained(file, about, runs.read_json(folder, runs.SUMMARY), runs.read_json(folder, runs.MANIFEST), runs.read_config(folder))
