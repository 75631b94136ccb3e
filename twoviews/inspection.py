"""What a run shows beside accuracies: statistics of its features, nearest neighbours, a map of the images, and its mistakes."""

import warnings
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twoviews import build
from twoviews.config import Config
from twoviews.data.duplicates import near_images
from twoviews.probes import knn
from twoviews.probes.diagnostics import alignment, rankme, spread, uniformity
from twoviews.probes.embed import pixels
from twoviews.rng import permutation

DIAGNOSED = 2000  # images that `diagnose` uses
EXAMINED, BANK = 2000, 10_000  # images that are looked at, and training images that their neighbours are chosen from
SHOWN, NEAREST = 8, 6  # of `neighbours`: images, and neighbours of each
MAPPED, PERPLEXITY = 1000, 30.0  # images of `embedding_map`; neighbours that UMAP and t-SNE consider for each
LEAST_UMAP = 500  # images; for fewer, t-SNE is done before UMAP has compiled itself, which takes 12 s, once in each installation
FEW = 200  # images of the evaluated split; with fewer, training images are mapped
MISTAKES, VOTES = 12, 10  # images of `mistakes`; neighbours that vote


def inspect(cfg: Config, parts: build.Parts) -> dict[str, Any]:
    """Return the entries of a run's summary that this file computes."""
    examined = examine(cfg, parts)
    return {
        "diagnostics": diagnose(cfg, parts),
        "neighbours": neighbours(parts, examined),
        "map": embedding_map(examined),
        "mistakes": mistakes(examined),
        "duplicates": duplicates(parts, examined),
    }


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
        of_views = parts.embed_views(module, images, 2, seed=cfg.seed, step=unseen)
        x = of_views[0] if name == "z" else parts.embed(module, images, f"diagnose, {name}")
        statistics[name] = {"dims": float(x.shape[1]), "std": spread(x), "rankme": rankme(x), "uniformity": uniformity(x)}
        if len(of_views) > 1:
            statistics[name]["alignment"] = alignment(*of_views)
    return statistics


@dataclass(frozen=True)
class Examined:
    """Random images of the evaluated split and a bank of training images, with their features.

    Args:
        split: its name.
        rows, labels, h: (n,) rows of the split in random order, their classes, and their features (n, D).
        bank, bank_labels, bank_h: the same of training images.
    """

    split: str
    rows: Tensor
    labels: Tensor
    h: Tensor
    bank: Tensor
    bank_labels: Tensor
    bank_h: Tensor


@torch.no_grad()
def examine(cfg: Config, parts: build.Parts) -> Examined:
    """Return the images to look at, with features by the trained backbone."""
    data, module = parts.dataset, parts.method.modules_to_probe()["h"]
    split = "val" if cfg.train_on == "train" or not len(data.test_labels) else "test"
    bank = torch.arange(len(data.labels))
    bank = bank[~torch.isin(bank, data.val_rows)] if split == "val" else bank
    bank = bank[:: -(-len(bank) // BANK)]
    images, labels = data.split(split)
    rows = permutation(0, 0, len(labels))[:EXAMINED]  # files of one name can be of one source
    h, bank_h = (parts.embed(module, x, "embed, report") for x in (images[rows], data.images[bank]))
    return Examined(split, rows, labels[rows], h, bank, data.labels[bank], bank_h)


def neighbours(parts: build.Parts, examined: Examined) -> dict[str, Any]:
    """Return random images of the evaluated split, one of each class, and the training images nearest to each by cosine.

    Returns:
        {split: its name, queries: rows of the split, raw_pixels and trained: for each query, rows of the training images,
        similarity: their cosines for trained}.
    """
    data, own = parts.dataset, examined
    first = torch.from_numpy(np.unique(own.labels.numpy(), return_index=True)[1])  # of each class; the rows are in random order
    some = first.sort().values[:SHOWN]
    chosen = some[own.labels[some].argsort()] if len(first) > 1 else torch.arange(min(SHOWN, len(own.rows)))
    found: dict[str, Any] = {"split": own.split, "queries": own.rows[chosen].tolist()}
    images = data.split(own.split)[0][own.rows[chosen]]
    for of, bank, queries in (("raw_pixels", pixels(data.images[own.bank]), pixels(images)), ("trained", own.bank_h, own.h[chosen])):
        nearest = knn.search(bank, queries, k=min(NEAREST, len(bank)), metrics=("cosine",))["cosine"]
        found[of] = own.bank[nearest.rows].tolist()
        found["similarity"] = nearest.similarity.double().numpy().round(3).tolist()
    return found


def mistakes(examined: Examined) -> dict[str, Any]:
    """Return the images whose neighbours agree most on a wrong class.

    Returns:
        {split, examined: number of images, wrong: number of them among whose `VOTES` neighbours a wrong class is more frequent than
        their own, rows: of the split, labels and predicted: their classes, votes: for the predicted class}; {} with fewer than two classes.
    """
    own = examined
    k = min(VOTES, len(own.bank))
    if len(torch.unique(own.bank_labels)) < 2:
        return {}
    near = own.bank_labels[knn.search(own.bank_h, own.h, k=k, metrics=("cosine",))["cosine"].rows]  # (n, k)
    predicted = near.mode(1).values
    votes = (near == predicted[:, None]).sum(1)
    wrong = (votes > (near == own.labels[:, None]).sum(1)).nonzero().flatten()
    worst = wrong[votes[wrong].argsort(descending=True, stable=True)[:MISTAKES]]
    found = {"split": own.split, "examined": len(own.rows), "wrong": len(wrong), "k": k}
    columns = {"rows": own.rows, "labels": own.labels, "predicted": predicted, "votes": votes}
    return found | {name: column[worst].tolist() for name, column in columns.items()}


def duplicates(parts: build.Parts, examined: Examined) -> dict[str, Any]:
    """Return images of the evaluated split that are nearly equal to a training image.

    Returns:
        {split, examined: number of images, pairs: (row of the split, row of the training images)}.
    """
    data, own = parts.dataset, examined
    rows = torch.arange(len(data.labels))
    rows = rows[~torch.isin(rows, data.val_rows)] if own.split == "val" else rows
    found = near_images(data.split(own.split)[0][own.rows], data.images[rows])
    return {"split": own.split, "examined": len(own.rows), "pairs": [(int(own.rows[i]), int(rows[j])) for i, j in found]}


def embedding_map(examined: Examined) -> dict[str, Any]:
    """Return positions of images in the plane, similar images side by side.

    By UMAP (McInnes et al. 2018) where it is installed and there are enough images, else by t-SNE (van der Maaten & Hinton 2008).

    Returns:
        {by: which of these, split: the evaluated one or, where that is small, `train+val`, rows: of the split, xy: a position in
        [0, 1] x [0, 1] for each}; {} if the features of all images are equal, or there are fewer than four.
    """
    split, rows, features = examined.split, examined.rows, examined.h
    if len(rows) < FEW:
        split, rows, features = "train+val", examined.bank, examined.bank_h
        chosen = permutation(0, 0, len(rows))[:MAPPED].sort().values
        rows, features = rows[chosen], features[chosen]
    rows, h = rows[:MAPPED], torch.nn.functional.normalize(features[:MAPPED], dim=1)
    if len(rows) < 4 or float(h.std(0).max()) < 1e-6:
        return {}
    by, xy = _plane(h.numpy().astype(np.float64))
    xy = (xy - xy.min(0)) / np.maximum(np.ptp(xy, axis=0), 1e-12)
    return {"by": by, "split": split, "rows": rows.tolist(), "xy": xy.astype(np.float64).round(4).tolist()}


def _plane(h: np.ndarray) -> tuple[str, np.ndarray]:
    """Return the method and positions (n, 2) of features (n, D)."""
    near = min(PERPLEXITY, (len(h) - 1) / 3)
    if len(h) >= LEAST_UMAP and find_spec("umap") is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TensorFlow is missing, and that a fixed seed uses one thread
            from umap import UMAP, layouts, umap_

            for function in (*vars(umap_).values(), *vars(layouts).values()):
                if hasattr(function, "enable_caching"):  # numba stores what it compiles, beside the installed files or in the user's cache
                    with suppress(RuntimeError):  # nowhere to store it
                        function.enable_caching()
            # with these neighbours and this start, three of its functions less are compiled, which takes longer than the map itself
            distance, row = torch.cdist(torch.from_numpy(h), torch.from_numpy(h)).topk(max(2, int(near)), largest=False)
            known = (row.numpy(), distance.float().numpy())
            return "UMAP", UMAP(n_neighbors=row.shape[1], precomputed_knn=known, init="pca", random_state=0).fit_transform(h)
    from sklearn.manifold import TSNE  # takes a second

    return "t-SNE", TSNE(init="pca", perplexity=near, random_state=0).fit_transform(h)
