"""A run's backbone read out, beside raw pixels and the untrained backbone: which images and labels each probe gets, and the scoring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from twoviews import build, tables
from twoviews.config import Config
from twoviews.data.dataset import Dataset, stratified
from twoviews.probes import minibatch, protocols
from twoviews.probes.diagnostics import alignment, confusion, per_class, rankme, spread, uniformity
from twoviews.probes.embed import CHUNK, frozen, pixels
from twoviews.probes.finetune import finetune

HOW = ("solver", "protocol", "probe_epochs", "probe_learning_rate", "probe_momentum", "probe_weight_decay")
DIAGNOSED = 2000  # images
SEEN = "test, its images trained on"
LABELLED = 1000  # and the seed: which images have labels where few have

Split = tuple[Tensor, Tensor]  # images (N, C, H, W) uint8 or features (N, D), and labels (N,)


def read_outs(
    cfg: Config,
    parts: build.Parts,
    probes: tuple[str, ...],
    *,
    data: Dataset,
    seed: int,
    of: str = "trained",
    max_steps: int | None = None,
) -> list[dict[str, Any]]:
    """Rows for raw pixels, the untrained and the trained backbone; linear probes on augmented images read the trained one alone.

    A final run (`train_on=train+val`) is read out on `test`, this once. A run that tunes (`train_on=train`) is read out on
    `val`, with a part of `train` in val's place, and never sees `test`. One that learned from test images too
    (`train_on=train+val+test`, as some papers do) is read out on `test`, and every row says so.

    Args:
        cfg: of the run.
        parts: built from it, the method's backbone trained.
        probes: names from `protocols.parse`.
        data: what is read out on: the run's own data set, or another with as many channels.
        seed: of probes that are trained by minibatches (their first weights, order and crops) and of which images few labels are for.
        of: what the rows call that backbone.
        max_steps: cuts probes short that are trained by minibatches.

    Returns:
        Rows of the summary: what was read out, the protocol, `seconds`, `accuracy` in [0, 1] and that of each class.

    Raises:
        ValueError: if features are not finite, or a probe's batch is larger than its rows.
        FloatingPointError: if a probe that is trained by minibatches diverges.
    """
    if len(data.classes) < 2:
        print(f"{data.title}: its images are of one class: there is nothing to read out")
        return []
    check(cfg, probes, data)
    train, val, test, where = _splits(cfg, data, own=data.digest == parts.dataset.digest)
    job = _Job(parts, train, val, test, len(data.classes), _schedule(cfg), seed, max_steps)
    votes = {features: protocols.votes(probes, features) for features in ("h", "z")}
    fitted = [name for name in probes if name not in (*protocols.KNN, *protocols.ON_IMAGES)]
    if votes["z"] and "z" not in parts.method.features():
        print(f"{cfg.method} has no projector: what reads z is left out")
    rows_of_bank = len(train[1]) + len(val[1])
    if beyond := sorted({one.k for both in votes.values() for one in both if one.k > rows_of_bank}):
        print(f"kNN with k = {', '.join(map(str, beyond))} is left out: the bank has {rows_of_bank} rows")
    modules = _modules(cfg, parts, of)
    rows: list[dict[str, Any]] = []

    def score(kind: str, features: str, new: list[protocols.Read]) -> None:
        about = {"of": kind, "features": features, "split": where}
        rows.extend(scored({**about, **row}, predicted, test[1], job.classes) for row, predicted in new)

    for kind, both in modules.items():
        for features in ("h", "z"):
            if features in both and (votes[features] or (features == "h" and fitted)):
                name = f"embed, {kind.replace('_', ' ')}"
                new = job.on_features(both[features], name, votes[features], fitted if features == "h" else [])
                score(kind, "pixels" if both[features] is None else features, new)
    for probe in (name for name in probes if name in protocols.ON_IMAGES):
        for kind in ("untrained", of) if probe in protocols.TUNED else (of,):  # fine-tuned from random weights too: what labels alone do
            backbone = modules[kind]["h"]
            assert backbone is not None, "pixels have no module"
            for share in protocols.SHARES.get(probe, (1.0,)):
                score(kind, "h", job.on_images(probe, share, backbone))
    return rows


def check(cfg: Config, probes: tuple[str, ...], data: Dataset) -> None:
    """Refuse what no probe could be fitted by, before time is spent.

    Raises:
        ValueError: if a probe that leaves short batches out has a batch larger than the images that it would be fitted on.
    """
    rows = len(data.labels) - (len(data.val_rows) if cfg.train_on == "train" else 0)
    for probe in (name for name in probes if name in protocols.ON_IMAGES and len(data.classes) > 1):
        how = _schedule(cfg)(probe)
        if not how.per_epoch(rows):
            raise ValueError(
                f"probes={cfg.probes}: {probe} has the run's batch of {how.batch_size} and leaves short ones out, and {data.title} has "
                f"{rows} images to fit it on: no step could be taken: leave it out, or train in smaller batches"
            )


def _schedule(cfg: Config) -> Callable[..., minibatch.Schedule]:
    """How each probe of a run is trained, as `protocols.schedule`."""
    changes = {name.removeprefix("probe_"): cfg[name] for name in HOW if name.startswith("probe_")}
    return partial(protocols.schedule, protocol=cfg.protocol, backbone=cfg.backbone, batch_size=cfg.batch_size, **changes)


@dataclass(frozen=True)
class _Job:
    """What the read-outs of one backbone share."""

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
    ) -> list[protocols.Read]:
        """kNN and linear read-outs of a module's features, or of pixels."""
        train, val, test = (
            pixels(images) if module is None else self.parts.embed(module, images, name) for images, _ in (self.train, self.val, self.test)
        )
        bank, labels = torch.cat([train, val]), torch.cat([self.train[1], self.val[1]])
        found = protocols.neighbours(votes, bank=(bank, labels), test=test, classes=self.classes)
        for probe in fitted:
            how = self.schedule(probe) if probe == "linear_precomp adam" else None
            for share in protocols.SHARES.get(probe, (None,)):
                fit, choose = (train, self.train[1]), (val, self.val[1])
                if share is not None:  # the decay is chosen within the few labels that there are
                    few = self.labelled(labels, share)
                    held = torch.from_numpy(stratified(labels[few].numpy(), max(1, len(few) // 5), seed=LABELLED + self.seed))
                    rest = torch.ones(len(few), dtype=torch.bool).index_fill(0, held, False)
                    fit, choose = ((bank[few[rows]], labels[few[rows]]) for rows in (rest, held))
                more: dict[str, Any] = {"how": how, "seed": self.seed, "max_steps": self.max_steps}
                found += protocols.read_out(probe, train=fit, val=choose, test=test, classes=self.classes, **more)
        return found

    def on_images(self, probe: str, share: float, backbone: nn.Module) -> list[protocols.Read]:
        """A linear probe on crops and flips of the images, or the whole net tuned on them."""
        machine, parts = self.parts.machine, self.parts
        images, labels = (torch.cat(both) for both in zip(self.train, self.val, strict=True))
        if share < 1:
            rows = self.labelled(labels, share)
            images, labels = images[rows], labels[rows]
        images, labels = images.to(machine.device), labels.to(machine.device)
        shape = (images.shape[1], images.shape[2], images.shape[3])
        views = minibatch.crop_and_flip_views(shape, crop_scale=protocols.CROPS[probe], mean=parts.mean, std=parts.std)
        of: dict[str, Any] = {"views": views, "make_views": build.views_on(machine, views)}
        of |= {"dtype": machine.dtype, "autocast": machine.autocast}
        how = self.schedule(probe, share=share)
        fit: dict[str, Any] = {"classes": self.classes, "schedule": how, "seed": self.seed, "max_steps": self.max_steps, "name": probe}
        said = {"probe": probe, **protocols.said(how, len(labels), self.seed, self.max_steps)}

        def read() -> list[protocols.Read]:
            width = parts.embed(backbone, self.test[0][:1], "embed, test").shape[1]
            if probe in protocols.TUNED:
                net, layer = finetune(backbone, images, labels, embed_dim=width, of=of, **fit)
                few = {"labels": len(labels)} if share < 1 else {}
                return [({**said, **few}, layer.predict(parts.embed(net, self.test[0], "embed, test")))]
            sets = how.sets(len(labels), self.max_steps, protocols.CACHED) if probe == "linear_augm_cached" else None
            layer = minibatch.on_views(backbone, images, labels, embed_dim=width, cached=sets, **of, **fit)
            kept = {"views": sets} if sets else {}
            return [({**said, **kept}, layer.predict(parts.embed(backbone, self.test[0], "embed, test")))]

        return protocols.timed(read)

    def labelled(self, labels: Tensor, share: float) -> Tensor:
        """Sorted rows of a stratified share of the labels, at least as many as classes: a pure function of labels and seed."""
        size = min(len(labels), max(self.classes, round(share * len(labels))))
        return torch.from_numpy(stratified(labels.numpy(), size, seed=LABELLED + self.seed))


def _splits(cfg: Config, data: Dataset, *, own: bool) -> tuple[Split, Split, Split, str]:
    """What probes are fitted on, what they choose by, what they are read out on, and what that is called."""
    if cfg.train_on != "train":
        return data.split("train"), data.split("val"), data.split("test"), SEEN if cfg.train_on == "train+val+test" and own else "test"
    images, labels = data.split("train")
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[torch.from_numpy(stratified(labels.numpy(), len(data.val_rows), seed=1))] = True
    return (images[~held], labels[~held]), (images[held], labels[held]), data.split("val"), "val"


def _modules(cfg: Config, parts: build.Parts, of: str) -> dict[str, Mapping[str, nn.Module | None]]:
    """What is read out, each with its modules for h and z; pixels are their own features."""
    untrained = build.placed(parts.machine, build.build_method(cfg, parts.dataset))
    return {"raw_pixels": {"h": None}, "untrained": untrained.features(), of: parts.method.features()}


def scored(row: dict[str, Any], predicted: Tensor, labels: Tensor, classes: int) -> dict[str, Any]:
    """A read-out's row with its accuracy, overall and of each class, and for the two headline probes which class was taken for which.

    The one place where labels of the split that is read out are looked at.
    """
    row["accuracy"] = (predicted == labels).double().mean().item()
    row["per_class"] = per_class(predicted, labels, classes)
    if tables.is_headline(row):
        row["confusion"] = confusion(predicted, labels, classes)
    return row


@torch.no_grad()
def diagnose(cfg: Config, parts: build.Parts) -> dict[str, dict[str, float]]:
    """How the trained method's h and z lie in space, on images of `val` and on two views of each.

    Returns:
        {features: {std, rankme, uniformity, alignment}}, the last where the recipe has two views.
    """
    images = parts.dataset.split("val")[0]
    images = images[:: -(-len(images) // DIAGNOSED)].to(parts.machine.device)
    unseen = cfg.epochs * parts.steps_per_epoch  # the first step that is not taken
    u = parts.views.draw(cfg.seed, unseen, len(images)).to(images.device, parts.machine.dtype)
    views = build.views_on(parts.machine, parts.views)(images, u)[:2]
    found = {}
    for name, module in parts.method.features().items():
        z = parts.embed(module, images, f"diagnose, {name}")
        found[name] = {"std": spread(z), "rankme": rankme(z), "uniformity": uniformity(z)}
        if len(views) == 2:
            with frozen(module), parts.machine.autocast():
                a, b = (torch.cat([module(x).float() for x in torch.split(view, CHUNK)]) for view in views)
            found[name]["alignment"] = alignment(a, b)
    return found
