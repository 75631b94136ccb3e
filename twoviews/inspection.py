"""What a run shows beside accuracies: statistics of its features, nearest neighbours, and a map of the images. No label is needed."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from twoviews import build
from twoviews.config import Config
from twoviews.probes import knn
from twoviews.probes.diagnostics import alignment, rankme, spread, uniformity
from twoviews.probes.embed import pixels
from twoviews.rng import permutation

DIAGNOSED = 2000  # images that `diagnose` uses
SHOWN, SHOWN_NEAREST, SHOWN_BANK = 8, 6, 10_000  # of `neighbours`: queries, images for each, and images they are chosen from
MAPPED, PERPLEXITY = 400, 30.0  # images of `embedding_map`; neighbours that t-SNE considers for each


@torch.no_grad()
def diagnose(cfg: Config, parts: build.Parts) -> dict[str, dict[str, float]]:
    """Return statistics of the trained method's features, on images of `Parts.sample`: h of whole images, z of the first view of each.

    Returns:
        {features: {dims, std, rankme, uniformity, alignment}}, alignment only if the recipe has two views.
    """
    images = parts.sample(DIAGNOSED)
    unseen = cfg.epochs * parts.steps_per_epoch  # the first step after the run
    statistics = {}
    for name, module in parts.method.modules_to_probe().items():
        of_views = parts.embed_views(module, images, seed=cfg.seed, step=unseen)
        x = of_views[0] if name == "z" else parts.embed(module, images, f"diagnose, {name}")
        statistics[name] = {"dims": float(x.shape[1]), "std": spread(x), "rankme": rankme(x), "uniformity": uniformity(x)}
        if len(of_views) > 1:
            statistics[name]["alignment"] = alignment(*of_views[:2])
    return statistics


@torch.no_grad()
def neighbours(cfg: Config, parts: build.Parts) -> dict[str, Any]:
    """Return random images of the evaluated split, one of each class, and the training images nearest to each by cosine.

    Returns:
        {split: its name, queries: rows of the split, raw_pixels and trained: for each query, rows of the training images}.
    """
    data = parts.dataset
    split = "val" if cfg.train_on == "train" or not len(data.test_labels) else "test"
    bank = torch.arange(len(data.labels))
    bank = bank[~torch.isin(bank, data.val_rows)] if split == "val" else bank
    bank = bank[:: -(-len(bank) // SHOWN_BANK)]
    images, labels = data.split(split)
    order = permutation(0, 0, len(labels))  # files of one name can be of one source
    first = order[np.unique(labels[order].numpy(), return_index=True)[1]]
    queries = first[:SHOWN] if len(first) > 1 else order[:SHOWN]
    found: dict[str, Any] = {"split": split, "queries": queries.tolist()}
    for of, module in (("raw_pixels", None), ("trained", parts.method.modules_to_probe()["h"])):
        features, wanted = (
            pixels(x) if module is None else parts.embed(module, x, "embed, neighbours") for x in (data.images[bank], images[queries])
        )
        nearest = knn.search(features, wanted, k=min(SHOWN_NEAREST, len(bank)), metrics=("cosine",))["cosine"]
        found[of] = bank[nearest.rows].tolist()
    return found


@torch.no_grad()
def embedding_map(parts: build.Parts) -> dict[str, Any]:
    """Return positions of training images in the plane by t-SNE (van der Maaten & Hinton 2008), similar images side by side.

    Only for images without classes, whose accuracies cannot be shown.

    Returns:
        {rows: of the training images, xy: a position in [0, 1] x [0, 1] for each}; {} if there are classes, the features of all
        images are equal, or scikit-learn (of the extra `report`, which draws the map) is missing.
    """
    data = parts.dataset
    if len(data.classes) > 1 or find_spec("sklearn") is None:
        return {}
    from sklearn.manifold import TSNE

    rows = permutation(0, 0, len(data.labels))[:MAPPED].sort().values
    h = torch.nn.functional.normalize(parts.embed(parts.method.modules_to_probe()["h"], data.images[rows], "embed, map"), dim=1)
    if float(h.std(0).max()) < 1e-6:
        return {}
    tsne = TSNE(init="pca", perplexity=min(PERPLEXITY, (len(rows) - 1) / 3), random_state=0)
    xy = tsne.fit_transform(h.numpy().astype(np.float64))
    xy = (xy - xy.min(0)) / np.maximum(np.ptp(xy, axis=0), 1e-12)
    return {"rows": rows.tolist(), "xy": xy.round(4).tolist()}
