"""Evaluate a frozen backbone beside two baselines, raw pixels and random initialisation.

This file decides which images and labels each probe sees, and compares predictions with test labels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from twoviews import build, distributed
from twoviews.config import Config
from twoviews.data.dataset import Dataset, stratified
from twoviews.probes import cost, minibatch, protocols
from twoviews.probes.diagnostics import confusion, per_class
from twoviews.probes.embed import pixels
from twoviews.probes.finetune import finetune
from twoviews.progress import duration
from twoviews.runs import tables

RANDOM = "random_initialisation"
SEEN = "test, its images trained on"  # name of the split where the run trained on test images
LEFT_OUT = "train+val, leaving one out"  # name of the split where there are no test images
LABELLED = 1000  # this plus the seed chooses which images keep their labels in probes of few labels

Split = tuple[Tensor, Tensor]  # images (N, C, H, W) uint8 or features (N, D), and labels (N,)


def evaluate(
    cfg: Config,
    parts: build.Parts,
    probes: tuple[str, ...],
    *,
    data: Dataset,
    seed: int,
    of: str = "trained",
    max_steps: int | None = None,
    store: Callable[[list[dict[str, Any]], list[str]], None] | None = None,
) -> list[dict[str, Any]]:
    """Return rows for the trained backbone and, with `baselines=true`, raw pixels and the random initialisation.

    Linear probes on augmented images evaluate the trained backbone only. `train_on=train+val` uses the test split, once.
    `train_on=train` uses the validation split, and chooses hyper-parameters on a part of `train`. `train_on=train+val+test`
    (as in some papers) uses the test split, and every row says so. Without test images, kNN leaves out one image at a time.

    Args:
        cfg: of the run.
        parts: built from it, with a trained backbone.
        probes: names from `protocols.parse`.
        data: the data set to evaluate on: the run's own, or another with as many channels.
        seed: of probes trained by minibatches (initial weights, order, crops) and of the choice of labelled images.
        of: name of the backbone in the rows.
        max_steps: stop probes that are trained by minibatches after so many steps.
        store: called as each probe ends, with all rows so far and the names of the probes that are left.

    Returns:
        Rows of the summary: what was evaluated, the protocol, `seconds`, `accuracy` in [0, 1], and the accuracy of each class.

    Raises:
        ValueError: if features are not finite, or a probe's batch is larger than its training set.
        FloatingPointError: if a probe trained by minibatches diverges.
    """
    if len(data.classes) < 2:
        print(f"{data.title}: no classes, so there are no accuracies: see the statistics of the features, the map and the neighbours")
        return []
    check(cfg, probes, data)
    train, val, test, split = _splits(cfg, data, own=data.digest == parts.dataset.digest)
    evaluation = Evaluation(parts, train, val, test, len(data.classes), _schedule(cfg), seed, max_steps, split == LEFT_OUT)
    steps = evaluation.steps(probes)
    _print_skipped(cfg, parts, probes, evaluation)
    modules = _modules(cfg, parts, of)
    if steps:
        seconds = distributed.on_first(lambda: evaluation.predict_seconds(steps, modules[of]["h"], baselines=cfg.baselines))
        print(f"evaluating {len(steps)} {'probe' if len(steps) == 1 else 'probes'}: about {duration(seconds)} (predicted)", flush=True)
    rows: list[dict[str, Any]] = []
    for number, names in enumerate(steps):
        print(f"probe {number + 1} of {len(steps)}: {', '.join(names)}", flush=True)
        for kind, by_features in modules.items():
            for features, module in by_features.items():
                predictions = evaluation.predictions(names, kind, features, module)
                evaluated = {"of": kind, "features": "pixels" if module is None else features, "split": split}
                rows += [scored({**evaluated, **row}, predicted, test[1], len(data.classes)) for row, predicted in predictions]
        if store is not None:
            store(rows, [name for later in steps[number + 1 :] for name in later])
    return rows


def _print_skipped(cfg: Config, parts: build.Parts, probes: tuple[str, ...], evaluation: "Evaluation") -> None:
    """Print which probes cannot be evaluated."""
    if protocols.votes(probes, "z") and "z" not in parts.method.modules_to_probe():
        print(f"{cfg.method} has no projector: probes of z are skipped")
    rows = evaluation.bank_rows()
    if too_large := sorted({vote.k for both in ("h", "z") for vote in protocols.votes(probes, both) if vote.k > rows}):
        print(f"kNN with k = {', '.join(map(str, too_large))} is skipped: the bank has {rows} rows")
    if evaluation.leave_one_out and (fitted := [name for name in probes if name not in protocols.KNN]):
        print(f"too few images per class for a test split: kNN leaves one image out at a time; {', '.join(fitted)} skipped")


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
        leave_one_out: the images of `test` are those of `train` and `val`; kNN leaves out the image itself.
    """

    parts: build.Parts
    train: Split
    val: Split
    test: Split
    classes: int
    schedule: Callable[..., minibatch.Schedule]
    seed: int
    max_steps: int | None
    leave_one_out: bool = False
    cache: dict[tuple[str, str], tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)  # features, for several probes

    def steps(self, probes: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Return the probes in the order of evaluation; all kNN protocols are one step, because one search serves them."""
        votes = tuple(name for name in probes if name in protocols.KNN)
        others = [] if self.leave_one_out else [name for name in probes if name not in protocols.KNN]
        ordered = sorted(others, key=lambda name: name in protocols.ON_IMAGES)  # the slow ones last
        return [*([votes] if votes else []), *((name,) for name in ordered)]

    def bank_rows(self) -> int:
        """Return the number of rows that kNN chooses from."""
        return len(self.train[1]) + len(self.val[1]) - self.leave_one_out

    def predictions(self, names: tuple[str, ...], kind: str, features: str, module: nn.Module | None) -> list[protocols.Prediction]:
        """Return the predictions of one step on the features `h` or `z` of a module, or on pixels (None)."""
        if names[0] in protocols.ON_IMAGES:
            wanted = features == "h" and module is not None and (kind != RANDOM or names[0] in protocols.TUNED)
            shares = protocols.SHARES.get(names[0], (1.0,))  # fine-tuned random weights show the effect of labels alone
            if not wanted or module is None:
                return []
            return distributed.on_first(lambda: [one for share in shares for one in self.on_images(names[0], share, module)])
        if names[0] not in protocols.KNN:
            if features != "h":
                return []
            computed = self.features(kind, features, module)
            return distributed.on_first(lambda: [(row, predicted.cpu()) for row, predicted in self.fitted(names[0], *computed)])
        votes = [vote for vote in protocols.votes(names, features) if vote.k <= self.bank_rows()]
        if not votes:
            return []
        train, val, test = self.features(kind, features, module)
        bank = torch.cat([train, val]), torch.cat([self.train[1], self.val[1]])
        return protocols.neighbours(votes, bank=bank, test=test, classes=self.classes, leave_one_out=self.leave_one_out)

    def features(self, kind: str, features: str, module: nn.Module | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features of train, val and test. Pixels are computed again for each probe, to save memory."""
        if (kind, features) in self.cache:
            return self.cache[kind, features]
        name = f"embed, {kind.replace('_', ' ')}"
        splits = [self.train, self.val] if self.leave_one_out else [self.train, self.val, self.test]
        computed = [pixels(images) if module is None else self.parts.embed(module, images, name) for images, _ in splits]
        if self.parts.machine.device.type == "cuda":  # searches and linear probes are computed where the features are
            computed = [x.cuda() for x in computed]
        train, val, test = [*computed, torch.cat(computed)][:3]
        if module is not None:
            self.cache[kind, features] = train, val, test
        return train, val, test

    def fitted(self, probe: str, train: Tensor, val: Tensor, test: Tensor) -> list[protocols.Prediction]:
        """Return predictions of a linear probe on features."""
        bank = torch.cat([train, val]), torch.cat([self.train[1], self.val[1]])
        training = self.schedule(probe) if probe == "linear_precomp adam" else None
        predictions = []
        for share in protocols.SHARES.get(probe, (None,)):
            fit, choose = ((train, self.train[1]), (val, self.val[1])) if share is None else self.few_labels(bank, share)
            options: dict[str, Any] = {"training": training, "seed": self.seed, "max_steps": self.max_steps}
            predictions += protocols.predict(probe, train=fit, val=choose, test=test, classes=self.classes, **options)
        return predictions

    def predict_seconds(self, steps: list[tuple[str, ...]], backbone: nn.Module | None, *, baselines: bool) -> float:
        """Return roughly how long these steps take, from two short measurements."""
        assert backbone is not None, "the trained backbone is no baseline"
        images, embed = self.train[0], self.parts.embed
        rates = cost.measure(lambda n: embed(backbone, images[torch.arange(n) % len(images)], "embed, measured"))
        dims = (pixels(images[:1]).shape[1], embed(backbone, images[:1], "embed, measured").shape[1])
        about: dict[str, Any] = {"rows": len(self.train[1]) + len(self.val[1]), "queries": len(self.test[1]), "classes": self.classes}
        return cost.seconds(steps, rates, dims=dims, schedule=self.schedule, baselines=baselines, **about)

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
        train, val = data.split("train"), data.split("val")
        if not len(data.test_labels):
            both = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
            return train, val, both, LEFT_OUT
        return train, val, data.split("test"), SEEN if cfg.train_on == "train+val+test" and own else "test"
    images, labels = data.split("train")
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[torch.from_numpy(stratified(labels.numpy(), len(data.val_rows), seed=1))] = True
    return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out]), data.split("val"), "val"


def _modules(cfg: Config, parts: build.Parts, of: str) -> dict[str, Mapping[str, nn.Module | None]]:
    """Return the modules for h and z of everything that is evaluated; None stands for raw pixels."""
    if not cfg.baselines:
        return {of: parts.method.modules_to_probe()}
    with distributed.alone():  # no batch is shared here
        random = build.to_device(build.build_method(cfg, parts.dataset), parts.machine)
    return {"raw_pixels": {"h": None}, RANDOM: random.modules_to_probe(), of: parts.method.modules_to_probe()}


def scored(row: dict[str, Any], predicted: Tensor, labels: Tensor, classes: int) -> dict[str, Any]:
    """Return a row with its accuracy, the accuracy of each class and, for the headline probes, the confusion matrix.

    Only this function compares predictions with the labels of the evaluated split.
    """
    predicted = predicted.cpu()
    row["accuracy"] = (predicted == labels).double().mean().item()
    row["per_class"] = per_class(predicted, labels, classes)
    if tables.is_headline(row):
        row["confusion"] = confusion(predicted, labels, classes)
    return row


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a run with new ones added; a new row replaces an old one of the same protocol."""

    def same(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["of"], row["features"], row["split"], protocols.protocol(row)

    return [row for row in old if same(row) not in map(same, new)] + new
