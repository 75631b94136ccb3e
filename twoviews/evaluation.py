"""Evaluate a frozen backbone beside two baselines, raw pixels and random initialisation.

This file decides which images and labels each probe sees, and compares predictions with test labels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from twoviews import build
from twoviews.config import Config
from twoviews.data.dataset import Dataset, stratified
from twoviews.probes import knn, minibatch, protocols
from twoviews.probes.diagnostics import alignment, confusion, per_class, rankme, spread, uniformity
from twoviews.probes.embed import CHUNK, frozen, pixels
from twoviews.probes.finetune import finetune
from twoviews.rng import permutation
from twoviews.runs import tables

RANDOM = "random_initialisation"
DIAGNOSED = 2000  # images that `diagnose` uses
SEEN = "test, its images trained on"  # name of the split where the run trained on test images
SHOWN, SHOWN_NEAREST, SHOWN_BANK = 8, 6, 10_000  # of `neighbours`: queries, images for each, and images they are chosen from
LABELLED = 1000  # this plus the seed chooses which images keep their labels in probes of few labels

Split = tuple[Tensor, Tensor]  # images (N, C, H, W) uint8 or features (N, D), and labels (N,)


def evaluate(
    cfg: Config, parts: build.Parts, probes: tuple[str, ...], *, data: Dataset, seed: int, of: str = "trained", max_steps: int | None = None
) -> list[dict[str, Any]]:
    """Return rows for raw pixels, the random initialisation and the trained backbone.

    Linear probes on augmented images evaluate the trained backbone only. With `train_on=train+val`, evaluation uses the test
    split, once. With `train_on=train` it uses the validation split, so that the test set stays untouched; a part of `train`
    then serves to choose hyper-parameters. With `train_on=train+val+test` (as in some papers) it uses the test split, and
    every row says so.

    Args:
        cfg: of the run.
        parts: built from it, with a trained backbone.
        probes: names from `protocols.parse`.
        data: the data set to evaluate on: the run's own, or another with as many channels.
        seed: of probes trained by minibatches (initial weights, order, crops) and of the choice of labelled images.
        of: name of the backbone in the rows.
        max_steps: stop probes that are trained by minibatches after so many steps.

    Returns:
        Rows of the summary: what was evaluated, the protocol, `seconds`, `accuracy` in [0, 1], and the accuracy of each class.

    Raises:
        ValueError: if features are not finite, or a probe's batch is larger than its training set.
        FloatingPointError: if a probe trained by minibatches diverges.
    """
    if len(data.classes) < 2:
        print(f"{data.title}: all images have one class: nothing to evaluate")
        return []
    check(cfg, probes, data)
    train, val, test, split = _splits(cfg, data, own=data.digest == parts.dataset.digest)
    evaluation = Evaluation(parts, train, val, test, len(data.classes), _schedule(cfg), seed, max_steps)
    votes = {features: protocols.votes(probes, features) for features in ("h", "z")}
    fitted = [name for name in probes if name not in (*protocols.KNN, *protocols.ON_IMAGES)]
    _print_skipped(cfg, parts, votes, len(train[1]) + len(val[1]))
    modules = _modules(cfg, parts, of)
    rows: list[dict[str, Any]] = []
    for kind, by_features in modules.items():
        for features in ("h", "z"):
            if features in by_features and (votes[features] or (features == "h" and fitted)):
                module, name = by_features[features], f"embed, {kind.replace('_', ' ')}"
                predictions = evaluation.on_features(module, name, votes[features], fitted if features == "h" else [])
                evaluated = {"of": kind, "features": "pixels" if module is None else features, "split": split}
                rows += evaluation.score(evaluated, predictions)
    for probe in (name for name in probes if name in protocols.ON_IMAGES):
        for kind in (RANDOM, of) if probe in protocols.TUNED else (of,):  # fine-tuned random weights show the effect of labels alone
            backbone = modules[kind]["h"]
            assert backbone is not None, "pixels have no module"
            for share in protocols.SHARES.get(probe, (1.0,)):
                evaluated = {"of": kind, "features": "h", "split": split}
                rows += evaluation.score(evaluated, evaluation.on_images(probe, share, backbone))
    return rows


def _print_skipped(cfg: Config, parts: build.Parts, votes: Mapping[str, tuple[protocols.Vote, ...]], bank_rows: int) -> None:
    """Print which kNN protocols cannot be evaluated."""
    if votes["z"] and "z" not in parts.method.modules_to_probe():
        print(f"{cfg.method} has no projector: probes of z are skipped")
    if too_large := sorted({vote.k for both in votes.values() for vote in both if vote.k > bank_rows}):
        print(f"kNN with k = {', '.join(map(str, too_large))} is skipped: the bank has {bank_rows} rows")


def check(cfg: Config, probes: tuple[str, ...], data: Dataset) -> None:
    """Refuse probes that could not take a step, before time is spent.

    Raises:
        ValueError: if a probe that skips smaller batches has a batch larger than its training set.
    """
    rows = len(data.labels) - (len(data.val_rows) if cfg.train_on == "train" else 0)
    for probe in (name for name in probes if name in protocols.ON_IMAGES and len(data.classes) > 1):
        schedule = _schedule(cfg)(probe)
        if not schedule.per_epoch(rows):
            raise ValueError(
                f"probes={cfg.probes}: {probe} uses full batches of {schedule.batch_size} (the run's), and {data.title} has only {rows} "
                "images to train it on: leave it out, or use a smaller batch_size"
            )


def _schedule(cfg: Config) -> Callable[..., minibatch.Schedule]:
    """Return `protocols.schedule` with the settings of a run."""
    changes = {name: cfg[f"probe_{name}"] for name in ("epochs", "learning_rate", "momentum", "weight_decay")}
    return partial(protocols.schedule, protocol=cfg.protocol, backbone=cfg.backbone, batch_size=cfg.batch_size, **changes)


@dataclass(frozen=True)
class Evaluation:
    """What the probes of all backbones share.

    Args:
        parts: of the run.
        train, val: images that probes are fitted on, and images by which they choose hyper-parameters.
        test: images whose classes they predict.
        classes: of the data set.
        schedule: returns the schedule of a probe, as `protocols.schedule`.
        seed, max_steps: see `evaluate`.
    """

    parts: build.Parts
    train: Split
    val: Split
    test: Split
    classes: int
    schedule: Callable[..., minibatch.Schedule]
    seed: int
    max_steps: int | None

    def on_features(
        self, module: nn.Module | None, name: str, votes: tuple[protocols.Vote, ...], fitted: list[str]
    ) -> list[protocols.Prediction]:
        """Return predictions of kNN and linear probes on the features of a module, or on pixels (None)."""
        train, val, test = (
            pixels(images) if module is None else self.parts.embed(module, images, name) for images, _ in (self.train, self.val, self.test)
        )
        bank = torch.cat([train, val]), torch.cat([self.train[1], self.val[1]])
        predictions = protocols.neighbours(votes, bank=bank, test=test, classes=self.classes)
        for probe in fitted:
            training = self.schedule(probe) if probe == "linear_precomp adam" else None
            for share in protocols.SHARES.get(probe, (None,)):
                fit, choose = ((train, self.train[1]), (val, self.val[1])) if share is None else self.few_labels(bank, share)
                options: dict[str, Any] = {"training": training, "seed": self.seed, "max_steps": self.max_steps}
                predictions += protocols.predict(probe, train=fit, val=choose, test=test, classes=self.classes, **options)
        return predictions

    def score(self, evaluated: dict[str, str], predictions: list[protocols.Prediction]) -> list[dict[str, Any]]:
        """Return predictions as rows of the summary, each with what was evaluated and with its accuracy."""
        return [scored({**evaluated, **row}, predicted, self.test[1], self.classes) for row, predicted in predictions]

    def few_labels(self, bank: Split, share: float) -> tuple[Split, Split]:
        """Return a share of the labelled rows in two parts: one to fit on, one to choose the weight decay by."""
        features, labels = bank
        few = self.labelled(labels, share)
        held_out = torch.from_numpy(stratified(labels[few].numpy(), max(1, len(few) // 5), seed=LABELLED + self.seed))
        rest = torch.ones(len(few), dtype=torch.bool).index_fill(0, held_out, False)
        fit, choose = ((features[few[rows]], labels[few[rows]]) for rows in (rest, held_out))
        return fit, choose

    def on_images(self, probe: str, share: float, backbone: nn.Module) -> list[protocols.Prediction]:
        """Return predictions of a linear probe on crops and flips of the images, or of the whole network fine-tuned on them."""
        machine, parts = self.parts.machine, self.parts
        images, labels = (torch.cat(both) for both in zip(self.train, self.val, strict=True))
        if share < 1:
            rows = self.labelled(labels, share)
            images, labels = images[rows], labels[rows]
        images, labels = images.to(machine.device), labels.to(machine.device)
        shape = (images.shape[1], images.shape[2], images.shape[3])
        views = minibatch.crop_and_flip_views(shape, crop_scale=protocols.CROPS[probe], mean=parts.views.mean, std=parts.views.std)
        options: dict[str, Any] = {"views": views, "make_views": build.make_views(machine, views)}
        options |= {"dtype": machine.dtype, "autocast": machine.autocast}
        schedule = self.schedule(probe, share=share)
        fit: dict[str, Any] = {"classes": self.classes, "schedule": schedule, "seed": self.seed, "max_steps": self.max_steps, "name": probe}
        described = {"probe": probe, **protocols.describe(schedule, len(labels), self.seed, self.max_steps)}

        def run() -> list[protocols.Prediction]:
            fit["embed_dim"] = parts.embed(backbone, self.test[0][:1], "embed, test").shape[1]
            if probe in protocols.TUNED:
                net, layer = finetune(backbone, images, labels, view_options=options, **fit)
                few = {"labels": len(labels)} if share < 1 else {}
                return [({**described, **few}, layer.predict(parts.embed(net, self.test[0], "embed, test")))]
            sets = schedule.sets(len(labels), self.max_steps, protocols.CACHED) if probe == "linear_augm_cached" else None
            layer = minibatch.on_views(backbone, images, labels, cached=sets, **options, **fit)
            cached = {"views": sets} if sets else {}
            return [({**described, **cached}, layer.predict(parts.embed(backbone, self.test[0], "embed, test")))]

        return protocols.timed(run)

    def labelled(self, labels: Tensor, share: float) -> Tensor:
        """Return sorted rows of a stratified share of the labels, at least one per class: a pure function of labels and seed."""
        size = min(len(labels), max(self.classes, round(share * len(labels))))
        return torch.from_numpy(stratified(labels.numpy(), size, seed=LABELLED + self.seed))


def _splits(cfg: Config, data: Dataset, *, own: bool) -> tuple[Split, Split, Split, str]:
    """Return the images to fit probes on, to choose hyper-parameters by and to predict, and the name of the last split."""
    if cfg.train_on != "train":
        return data.split("train"), data.split("val"), data.split("test"), SEEN if cfg.train_on == "train+val+test" and own else "test"
    images, labels = data.split("train")
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[torch.from_numpy(stratified(labels.numpy(), len(data.val_rows), seed=1))] = True
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out]), data.split("val"), "val"


def _modules(cfg: Config, parts: build.Parts, of: str) -> dict[str, Mapping[str, nn.Module | None]]:
    """Return the modules for h and z of everything that is evaluated; None stands for raw pixels."""
    random = build.to_device(build.build_method(cfg, parts.dataset), parts.machine)
    return {"raw_pixels": {"h": None}, RANDOM: random.modules_to_probe(), of: parts.method.modules_to_probe()}


def scored(row: dict[str, Any], predicted: Tensor, labels: Tensor, classes: int) -> dict[str, Any]:
    """Return a row with its accuracy, the accuracy of each class and, for the headline probes, the confusion matrix.

    Only this function compares predictions with the labels of the evaluated split.
    """
    row["accuracy"] = (predicted == labels).double().mean().item()
    row["per_class"] = per_class(predicted, labels, classes)
    if tables.is_headline(row):
        row["confusion"] = confusion(predicted, labels, classes)
    return row


@torch.no_grad()
def diagnose(cfg: Config, parts: build.Parts) -> dict[str, dict[str, float]]:
    """Return statistics of the trained method's h and z, on images of `val` and on two views of each.

    Returns:
        {features: {std, rankme, uniformity, alignment}}, alignment only if the recipe has two views.
    """
    images = parts.dataset.split("val")[0]
    images = images[:: -(-len(images) // DIAGNOSED)].to(parts.machine.device)
    unseen = cfg.epochs * parts.steps_per_epoch  # the first step after the run
    u = parts.views.draw(cfg.seed, unseen, len(images)).to(images.device, parts.machine.dtype)
    views = build.make_views(parts.machine, parts.views)(images, u)[:2]
    statistics = {}
    for name, module in parts.method.modules_to_probe().items():
        z = parts.embed(module, images, f"diagnose, {name}")
        statistics[name] = {"std": spread(z), "rankme": rankme(z), "uniformity": uniformity(z)}
        if len(views) == 2:
            with frozen(module), parts.machine.autocast():
                a, b = (torch.cat([module(x).float() for x in torch.split(view, CHUNK)]) for view in views)
            statistics[name]["alignment"] = alignment(a, b)
    return statistics


@torch.no_grad()
def neighbours(cfg: Config, parts: build.Parts) -> dict[str, Any]:
    """Return random images of the evaluated split, one of each class, and the training images nearest to each by cosine.

    Returns:
        {split: its name, queries: rows of the split, raw_pixels and trained: for each query, rows of the training images}.
    """
    data = parts.dataset
    split = "val" if cfg.train_on == "train" else "test"
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


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a run with new ones added; a new row replaces an old one of the same protocol."""

    def same(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["of"], row["features"], row["split"], protocols.protocol(row)

    replaced = {same(row) for row in new}
    return [row for row in old if same(row) not in replaced] + new
