"""From the configuration to the data set and its views, and which combinations are refused."""

import inspect
from dataclasses import fields
from typing import Any

from twoviews import distributed
from twoviews.config import Config, view_differences
from twoviews.data.dataset import Dataset, load
from twoviews.data.folder import Options
from twoviews.methods import METHODS
from twoviews.views import Views, ViewSpec

OWN_DATA = "own_data"  # what `dataset` is in a run whose images were given in Python; no word of a command line


def load_data(cfg: Config) -> Dataset:
    """Return the data set of a configuration.

    Raises:
        ValueError: if the data cannot be read.
    """
    if cfg.dataset == OWN_DATA:
        raise ValueError(
            f"dataset={OWN_DATA}: the images of this run were given in Python, with data=: give them again there, "
            "twoviews.pretrain(resume=<run>, data=...) or twoviews.evaluate(<run>, data=...)"
        )
    given = {key.name: cfg.get(key.name) for key in fields(Options)}  # runs of version 0.1.0 lack some of these keys
    options: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items() if value is not None}
    return load(cfg.dataset, cfg.data_dir, cfg.get("train_size"), options=Options(**options))


def build_views(cfg: Config, dataset: Dataset) -> Views:
    """Return the recipe's views of this data set.

    The common values are keys of the recipe; `views` lists what differs from them, for each view or for `count` views. Sizes are those
    of `view_sizes`, or the images' own.

    Raises:
        ValueError: if the two lists do not fit.
    """
    channels, height, width = dataset.images.shape[1:]
    mean, std = normalisation(cfg, dataset)
    common = {name: cfg[name] for name in inspect.signature(ViewSpec).parameters if name != "size"}
    differences = view_differences(cfg)
    sizes = cfg.view_sizes or [height] * len(differences)
    specs = [ViewSpec(size=size, **{**common, **own}) for size, own in zip(sizes, differences, strict=True)]
    return Views(image_shape=(channels, height, width), specs=specs, mean=mean, std=std)


def normalisation(cfg: Config, dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation for pixels in [0, 1]: the data set's, or 0 and 1."""
    channels = dataset.images.shape[1]
    return (dataset.mean, dataset.std) if cfg.normalize else ((0.0,) * channels, (1.0,) * channels)


def check(cfg: Config, dataset: Dataset, images: int, unlabelled: bool) -> None:
    """Refuse combinations of keys and data that cannot be trained.

    Args:
        cfg, dataset: of the run.
        images: number of training images.
        unlabelled: whether some of them have no label.

    Raises:
        ValueError: what does not fit, and what to choose.
    """
    if (count := len(view_differences(cfg))) < (least := METHODS[cfg.method].least_views):
        raise ValueError(f"{cfg.method}: needs {least} views, got {count}: describe as many in view_sizes and in views, or leave both out")
    if METHODS[cfg.method].uses_labels and unlabelled:
        raise ValueError(f"train_on={cfg.train_on}: {cfg.method} needs labels, and test images have none here: expected train+val")
    if cfg.batch_size > images:
        raise ValueError(f"batch_size={cfg.batch_size}: {dataset.title} has {images} images in {cfg.train_on}: choose at most that")
    if not cfg.drop_last and images % cfg.batch_size == 1:
        raise ValueError(f"drop_last=false: the last batch of an epoch would hold one image (of {images}): change batch_size or drop it")
    processes, last = distributed.size(), 0 if cfg.drop_last else images % cfg.batch_size
    if cfg.batch_size % processes:
        raise ValueError(f"batch_size={cfg.batch_size}: {processes} processes cannot share it: choose a multiple of {processes}")
    if last % processes:
        raise ValueError(f"drop_last=false: {processes} processes cannot share the last batch of {last} images: use drop_last=true")
    if min(cfg.batch_size, last or cfg.batch_size) < 2 * processes:
        raise ValueError(f"batch_size={cfg.batch_size}: each of {processes} processes needs two images: choose at least {2 * processes}")
