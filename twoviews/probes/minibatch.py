"""The linear probe trained by minibatches, as the seeds do: on precomputed features, or on features of augmented images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twoviews.optim import learning_rate
from twoviews.probes.embed import CHUNK, frozen
from twoviews.probes.linear import Linear
from twoviews.progress import Progress
from twoviews.views import Views, philox

ORDER = 1 << 32  # Philox stream of the order of a probe's epochs: views take the streams from 1 on, an epoch of training takes 0


@dataclass(frozen=True)
class Schedule:
    """How a probe is trained.

    Args:
        optimizer: `adam`, or `sgd` with Nesterov momentum.
        learning_rate: the first step's, annealed by a cosine to `floor`.
        floor: >= 0, absolute.
        unit: `epoch` or `step`: where the rate changes.
        epochs, batch_size: >= 1.
        weight_decay: L2, on weight and bias.
        momentum: in [0, 1); Adam's first beta.
        drop_last: leave out the last, short batch of an epoch.
    """

    optimizer: str
    learning_rate: float
    epochs: int
    batch_size: int
    floor: float = 0.0
    unit: str = "epoch"
    weight_decay: float = 0.0
    momentum: float = 0.9
    drop_last: bool = False

    def per_epoch(self, n: int) -> int:
        """Steps in an epoch of n rows."""
        return n // self.batch_size if self.drop_last else math.ceil(n / self.batch_size)

    def sets(self, n: int, max_steps: int | None, most: int) -> int:
        """How many sets of cached views of n rows are taken at all: one an epoch, `most` at most."""
        steps = min(self.epochs * self.per_epoch(n), max_steps or self.epochs * self.per_epoch(n))
        return max(1, min(most, math.ceil(steps / max(1, self.per_epoch(n)))))


def fit(
    features: Callable[[Tensor, int], Tensor],
    labels: Tensor,
    *,
    classes: int,
    embed_dim: int,
    schedule: Schedule,
    seed: int,
    max_steps: int | None,
    name: str,
    along: Iterable[nn.Parameter] = (),
) -> Linear:
    """Train weight and bias of one linear layer on cross entropy; the last step's are the result, no best epoch is looked for.

    Args:
        features: (rows (B,) int64, step) to features (B, embed_dim), with a graph only where parameters are trained along.
        labels: (N,) int64 on the device of the features.
        classes, embed_dim: of the layer.
        schedule: see there.
        seed: decides the first weights and the order of the images.
        max_steps: stop after so many steps, the schedule staying as it is; None: all.
        name: for the progress bar.
        along: parameters to train with the layer: those of a net that is fine-tuned; a last batch of one image is left out then.

    Raises:
        ValueError: if a batch is larger than the set and short ones are left out.
        FloatingPointError: if the loss is not finite at the end.
    """
    n, batch, along = len(labels), schedule.batch_size, list(along)
    per_epoch = schedule.per_epoch(n)
    if along and per_epoch > 1 and n % batch == 1 and not schedule.drop_last:
        per_epoch -= 1  # one image has no statistics for BatchNorm; another is the last in the next epoch
    if not per_epoch:
        raise ValueError(f"{name}: {n} images are less than a batch of {batch}: no step could be taken")
    steps = schedule.epochs * per_epoch
    last = min(steps, max_steps or steps)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        layer = nn.Linear(embed_dim, classes).to(labels.device)
        parameters = {"params": [*layer.parameters(), *along], "lr": schedule.learning_rate, "weight_decay": schedule.weight_decay}
        optimizer: torch.optim.Optimizer
        if schedule.optimizer == "adam":
            optimizer = torch.optim.Adam([parameters], betas=(schedule.momentum, 0.999))
        else:
            optimizer = torch.optim.SGD([parameters], momentum=schedule.momentum, nesterov=schedule.momentum > 0)
        loss = torch.zeros(())
        with Progress(name, last, "images", scale=min(batch, n)) as bar:
            for step in range(last):
                epoch, place = divmod(step, per_epoch)
                if place == 0 or step == 0:
                    order = torch.from_numpy(np.argsort(philox(seed, epoch, ORDER, n), kind="stable")).to(labels.device)
                rows = order[place * batch : (place + 1) * batch]
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(
                        step,
                        steps=steps,
                        steps_per_epoch=per_epoch,
                        peak=schedule.learning_rate,
                        floor=schedule.floor,
                        warmup_epochs=0,
                        schedule="cosine",
                        unit=schedule.unit,
                    )
                loss = F.cross_entropy(layer(features(rows, step)), labels[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                bar.add()
    if not math.isfinite(loss.item()):
        raise FloatingPointError(f"{name}: the loss is {loss.item()} at rate {schedule.learning_rate:g}: try a lower one")
    return Linear(layer.weight.detach().cpu(), layer.bias.detach().cpu())


def on_features(features: Tensor, labels: Tensor, **how: Any) -> Linear:
    """`fit` on precomputed features (N, D), in float32."""
    features = features.float()
    return fit(lambda rows, _: features[rows], labels, embed_dim=features.shape[1], **how)


def on_views(
    module: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    views: Views,
    make_views: Callable[[Tensor, Tensor], list[Tensor]],
    dtype: torch.dtype,
    autocast: Callable[[], AbstractContextManager[Any]],
    embed_dim: int,
    schedule: Schedule,
    seed: int,
    cached: int | None = None,
    **how: Any,
) -> Linear:
    """`fit` on features of augmented images by a frozen module: no graph goes through it, no projector runs.

    Args:
        module: (N, C, H, W) to (N, embed_dim).
        images, labels: (N, C, H, W) uint8 and (N,), on the device of the module.
        views: `crop_and_flip_views`, one a step.
        make_views: `views` itself or its compiled form.
        dtype: of the module's parameters.
        autocast: makes the context of the forward.
        embed_dim: width of the features.
        schedule: see `fit`.
        seed: see `fit`; the crops are a function of it too.
        cached: make so many views of every image beforehand and take them in turn, one an epoch; None: new ones at every step.
    """

    features = torch.no_grad()(of_views(module, images, views=views, make_views=make_views, dtype=dtype, autocast=autocast, seed=seed))

    def kept(sets: int) -> Callable[[Tensor, int], Tensor]:
        # Half precision: 16 sets of 50,000 features of 512 dimensions take 0.8 GB.
        cache = torch.empty(sets, len(images), embed_dim, dtype=torch.float16, device=images.device)
        chunks = torch.split(torch.arange(len(images), device=images.device), CHUNK)
        with Progress("views", sets * len(images), "images") as bar:
            for i, (one, rows) in enumerate((one, rows) for one in range(sets) for rows in chunks):
                cache[one, rows] = features(rows, i).half()
                bar.add(len(rows))
        per_epoch = schedule.per_epoch(len(images))
        return lambda rows, step: cache[step // per_epoch % sets, rows].float()

    with frozen(module):
        source = features if cached is None else kept(cached)
        return fit(source, labels, embed_dim=embed_dim, schedule=schedule, seed=seed, **how)


def of_views(
    module: nn.Module,
    images: Tensor,
    *,
    views: Views,
    make_views: Callable[[Tensor, Tensor], list[Tensor]],
    dtype: torch.dtype,
    autocast: Callable[[], AbstractContextManager[Any]],
    seed: int,
) -> Callable[[Tensor, int], Tensor]:
    """(rows (B,), step) to the module's features (B, D) of new views of those images; the arguments are those of `on_views`."""

    def features(rows: Tensor, step: int) -> Tensor:
        u = views.draw(seed, step, len(rows)).to(images.device, dtype)
        (x,) = make_views(images[rows], u)
        with autocast():
            h: Tensor = module(x.contiguous(memory_format=torch.channels_last))
        return h.float()

    return features


def crop_and_flip_views(
    image_shape: tuple[int, int, int], *, crop_scale: Sequence[float], mean: Sequence[float], std: Sequence[float]
) -> Views:
    """One view an image: RandomResizedCrop with areas in `crop_scale` and a flip of even odds; nothing touches the colours."""
    return Views(
        image_shape=image_shape,
        view_sizes=(image_shape[1],),
        crop_scale=crop_scale,
        crop_ratio=(3 / 4, 4 / 3),
        interpolation="bilinear",
        flip_p=0.5,
        jitter_p=0.0,
        brightness=0.0,
        contrast=0.0,
        saturation=0.0,
        hue=0.0,
        grayscale_p=0.0,
        blur_p=0.0,
        blur_kernel=3,
        blur_sigma=(0.1, 2.0),
        solarize_p=0.0,
        mean=mean,
        std=std,
    )
