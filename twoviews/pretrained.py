"""Pretrained backbones: those of runs, and those that come with the package."""

from pathlib import Path

import torch
from torch import nn

from twoviews import runs
from twoviews.images.inputs import home
from twoviews.models.resnet import build_backbone
from twoviews.rng import seeded
from twoviews.runs import weights

BUNDLED = {path.stem: path for path in sorted((Path(__file__).parent / "assets").glob("*.safetensors"))}  # by name


def weights_file(run: str | Path, runs_dir: str | Path) -> Path:
    """Return the weights file that a name stands for.

    Args:
        run: a run folder, its name, `latest`, a `.safetensors` file, or the name of a bundled model.
        runs_dir: where `latest` and names are looked for.

    Raises:
        ValueError: if there is no such run, or it has not finished.
    """
    name = str(run)
    if name in BUNDLED and not Path(name).exists():
        return BUNDLED[name]
    if name.endswith(".safetensors"):
        return home(name)
    folder = runs.find(str(home(name)), home(runs_dir))
    if not (folder / runs.BACKBONE).is_file():
        raise ValueError(f"run={name}: not finished: it has no {runs.BACKBONE}: finish it with twoviews pretrain resume={folder}")
    return folder / runs.BACKBONE


def load_backbone(run: str | Path) -> nn.Module:
    """Return a trained backbone, frozen and in eval mode: a module from (N, C, H, W) to h (N, embed_dim).

    Args:
        run: a run folder, its `.safetensors` file, or the name of a bundled model (`BUNDLED`). Input images are in [0, 1],
            minus `module.mean`, divided by `module.std` (buffers of shape (C, 1, 1)).

    Raises:
        ValueError: if there is no such file, or TwoViews did not write it.
    """
    path = Path(run) / runs.BACKBONE if Path(run).is_dir() else BUNDLED.get(str(run), Path(run))
    if not path.is_file():
        raise ValueError(f"{path}: no such file: expected a finished run, its file, or one of {', '.join(BUNDLED)}")
    about = weights.check(path, runs.identity(Path(run))) if Path(run).is_dir() else weights.read(path)[1]
    if "backbone" not in about:
        raise ValueError(f"{path}: does not say which backbone it holds: not written by TwoViews")
    with seeded(0):  # the values are replaced; the caller's random state must not move
        module, _ = build_backbone(about["backbone"], in_channels=int(about["in_channels"]), image_size=int(about["image_size"]))
    weights.load_into(module, path)
    for name in ("mean", "std"):
        module.register_buffer(name, torch.tensor([float(v) for v in about[name].split()]).view(-1, 1, 1), persistent=False)
    return module.eval().requires_grad_(False)
