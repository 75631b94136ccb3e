"""A run's backbone read out, beside raw pixels and the untrained backbone: which images and labels each probe gets, and the scoring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from twoviews import build, tables
from twoviews.config import Config
from twoviews.data.dataset import stratified
from twoviews.probes import minibatch, protocols
from twoviews.probes.diagnostics import alignment, confusion, per_class, rankme, spread, uniformity
from twoviews.probes.embed import CHUNK, frozen, pixels
from twoviews.probes.finetune import finetune

HOW = ("solver", "protocol", "probe_epochs", "probe_learning_rate", "probe_momentum", "probe_weight_decay")
DIAGNOSED = 2000  # images
LABELLED = 1000  # and the seed: which images have labels where few have

Split = tuple[Tensor, Tensor]  # images (N, C, H, W) uint8 or features (N, D), and labels (N,)


def read_outs(
    cfg: Config, parts: build.Parts, probes: tuple[str, ...], *, seed: int, of: str = "trained", max_steps: int | None = None
) -> list[dict[str, Any]]:
    """Rows for raw pixels, the untrained and the trained backbone; probes on augmented images read the trained one alone.

    A final run (`train_on=train+val`) is read out on `test`, this once. A run that tunes (`train_on=train`) is read out on
    `val`, with a part of `train` in val's place, and never sees `test`.

    Args:
        cfg: of the run.
        parts: built from it, the method's backbone trained.
        probes: names from `protocols.parse`.
        seed: of probes that are trained by minibatches (their first weights, order and crops) and of which images few labels are for.
        of: what the rows call that backbone.
        max_steps: cuts probes short that are trained by minibatches.
    """
    train, val, test, where = _splits(cfg, parts)
    votes = {features: protocols.votes(probes, features) for features in ("h", "z")}
    fitted = [name for name in probes if name not in (*protocols.KNN, *protocols.ON_IMAGES)]
    if votes["z"] and "z" not in parts.method.features():
        print(f"{cfg.method} has no projector: what reads z is left out")
    modules = _modules(cfg, parts, of)
    changes = {name.removeprefix("probe_"): cfg[name] for name in HOW if name.startswith("probe_")}
    schedule = partial(protocols.schedule, protocol=cfg.protocol, backbone=cfg.backbone, batch_size=cfg.batch_size, **changes)
    rows: list[dict[str, Any]] = []

    def score(kind: str, features: str, new: list[protocols.Read]) -> None:
        about = {"of": kind, "features": features, "split": where}
        rows.extend(scored({**about, **row}, predicted, test[1], len(parts.dataset.classes)) for row, predicted in new)

    for kind, both in modules.items():
        for features in ("h", "z"):
            if features in both and (votes[features] or (features == "h" and fitted)):
                module = both[features]
                embedded = [_features(parts, module, images, f"embed, {kind.replace('_', ' ')}") for images in (train[0], val[0], test[0])]
                new = _on_features(
                    parts, schedule, votes[features], fitted if features == "h" else [], train, val, embedded, seed, max_steps
                )
                score(kind, "pixels" if module is None else features, new)
    images = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
    for probe in (name for name in probes if name in protocols.ON_IMAGES):
        for kind in ("untrained", of) if probe in protocols.TUNED else (of,):  # fine-tuned from random weights too: what labels alone do
            backbone = modules[kind]["h"]
            assert backbone is not None, "pixels have no module"
            for share in protocols.SHARES.get(probe, (1.0,)):
                score(kind, "h", _on_images(parts, schedule, probe, share, backbone, images, test[0], seed, max_steps))
    return rows


def _splits(cfg: Config, parts: build.Parts) -> tuple[Split, Split, Split, str]:
    """What probes are fitted on, what they choose by, what they are read out on, and what that is called."""
    data = parts.dataset
    if cfg.train_on == "train+val":
        return data.split("train"), data.split("val"), data.split("test"), "test"
    images, labels = data.split("train")
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[torch.from_numpy(stratified(labels.numpy(), len(data.val_rows), seed=1))] = True
    return (images[~held], labels[~held]), (images[held], labels[held]), data.split("val"), "val"


def _modules(cfg: Config, parts: build.Parts, of: str) -> dict[str, Mapping[str, nn.Module | None]]:
    """What is read out, each with its modules for h and z; pixels are their own features."""
    untrained = build.build_method(cfg, parts.dataset).to(parts.machine.device, parts.machine.dtype).to(memory_format=torch.channels_last)
    return {"raw_pixels": {"h": None}, "untrained": untrained.features(), of: parts.method.features()}


def _features(parts: build.Parts, module: nn.Module | None, images: Tensor, name: str) -> Tensor:
    return pixels(images) if module is None else parts.embed(module, images, name)


def _on_features(
    parts: build.Parts,
    schedule: Callable[..., minibatch.Schedule],
    votes: tuple[protocols.Vote, ...],
    fitted: list[str],
    train: Split,
    val: Split,
    embedded: list[Tensor],
    seed: int,
    max_steps: int | None,
) -> list[protocols.Read]:
    """kNN and linear read-outs of the features of train, val and test."""
    classes, labels = len(parts.dataset.classes), torch.cat([train[1], val[1]])
    bank, test = torch.cat(embedded[:2]), embedded[2]
    found = protocols.neighbours(votes, bank=(bank, labels), test=test, classes=classes)
    for probe in fitted:
        how = schedule(probe) if probe == "linear_precomp adam" else None
        for share in protocols.SHARES.get(probe, (None,)):
            fit, choose = (embedded[0], train[1]), (embedded[1], val[1])
            if share is not None:  # the decay is chosen within the few labels that there are
                few = _labelled(labels, share, classes, seed)
                held = torch.from_numpy(stratified(labels[few].numpy(), max(1, len(few) // 5), seed=LABELLED + seed))
                rest = torch.ones(len(few), dtype=torch.bool).index_fill(0, held, False)
                fit, choose = ((bank[few[rows]], labels[few[rows]]) for rows in (rest, held))
            found += protocols.read_out(probe, train=fit, val=choose, test=test, classes=classes, how=how, seed=seed, max_steps=max_steps)
    return found


def _on_images(
    parts: build.Parts,
    schedule: Callable[..., minibatch.Schedule],
    probe: str,
    share: float,
    backbone: nn.Module,
    train: Split,
    test: Tensor,
    seed: int,
    max_steps: int | None,
) -> list[protocols.Read]:
    """A linear probe on crops and flips of the images, or the whole net tuned on them."""
    device, classes = parts.machine.device, len(parts.dataset.classes)
    rows = _labelled(train[1], share, classes, seed)
    images, labels = train[0][rows].to(device), train[1][rows].to(device)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    views = minibatch.crop_and_flip_views(shape, crop_scale=protocols.CROPS[probe], mean=parts.mean, std=parts.std)
    make_views = build.views_on(parts.machine, views)
    of: dict[str, Any] = {"views": views, "make_views": make_views, "dtype": parts.machine.dtype, "autocast": parts.machine.autocast}
    how = schedule(probe, share=share)
    fit: dict[str, Any] = {"classes": classes, "schedule": how, "seed": seed, "max_steps": max_steps, "name": probe}
    said = {"probe": probe, **protocols.said(how, len(labels), seed, max_steps)} | ({"labels": len(labels)} if share < 1 else {})

    def read() -> list[protocols.Read]:
        width = parts.embed(backbone, test[:1], "embed, test").shape[1]
        if probe in protocols.TUNED:
            net, layer = finetune(backbone, images, labels, embed_dim=width, of=of, **fit)
            return [(said, layer.predict(parts.embed(net, test, "embed, test")))]
        cached = protocols.CACHED if probe == "linear_augm_cached" else None
        layer = minibatch.on_views(backbone, images, labels, embed_dim=width, cached=cached, **of, **fit)
        predicted = layer.predict(parts.embed(backbone, test, "embed, test"))
        return [(said | ({"views": cached} if cached else {}), predicted)]

    return protocols.timed(read)


def _labelled(labels: Tensor, share: float, classes: int, seed: int) -> Tensor:
    """Sorted rows of a stratified share of the labels, at least as many as classes: a pure function of labels and seed."""
    size = min(len(labels), max(classes, round(share * len(labels))))
    return torch.from_numpy(stratified(labels.numpy(), size, seed=LABELLED + seed))


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
