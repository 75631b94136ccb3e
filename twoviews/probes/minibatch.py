"""The linear probe trained by minibatches, as in the reference projects: on precomputed features or on augmented images."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twoviews.device import send
from twoviews.optim import learning_rate
from twoviews.probes.embed import at_once, frozen
from twoviews.probes.linear import Linear
from twoviews.progress import Progress
from twoviews.rng import PROBE_ORDER, philox, seeded
from twoviews.views import Views, ViewSpec


@dataclass(frozen=True)
class Schedule:
    """How a probe is trained.

    Args:
        optimizer: `adam`, or `sgd` with Nesterov momentum.
        learning_rate: of the first step; a cosine anneals it to `floor`.
        floor: >= 0, absolute.
        unit: `epoch` or `step`: when the rate changes.
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
        """Return the number of steps in an epoch of n rows."""
        return n // self.batch_size if self.drop_last else math.ceil(n / self.batch_size)

    def sets(self, n: int, max_steps: int | None, most: int) -> int:
        """Return the number of sets of cached views of n rows that training uses: one per epoch, at most `most`."""
        steps = min(self.epochs * self.per_epoch(n), max_steps or self.epochs * self.per_epoch(n))
        return max(1, min(most, math.ceil(steps / max(1, self.per_epoch(n)))))

    def rate(self, step: int, per_epoch: int) -> float:
        """Return the learning rate of a step, with so many steps per epoch."""
        return learning_rate(
            step,
            steps=self.epochs * per_epoch,
            steps_per_epoch=per_epoch,
            peak=self.learning_rate,
            floor=self.floor,
            warmup_epochs=0,
            schedule="cosine",
            unit=self.unit,
        )

    def build_optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimiser of these parameters."""
        group = {"params": parameters, "lr": self.learning_rate, "weight_decay": self.weight_decay}
        fused = parameters[0].device.type == "cuda"  # one kernel a step; elsewhere the numbers stay those of torch's default
        if self.optimizer == "adam":
            return torch.optim.Adam([group], betas=(self.momentum, 0.999), fused=fused)
        return torch.optim.SGD([group], momentum=self.momentum, nesterov=self.momentum > 0, fused=fused)


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
    backbone_parameters: Iterable[nn.Parameter] = (),
) -> Linear:
    """Train weight and bias of one linear layer on cross entropy; the result is that of the last step, not of the best epoch.

    Args:
        features: (rows (B,) int64, step) to features (B, embed_dim); with a graph only in fine-tuning.
        labels: (N,) int64 on the device of the features.
        classes, embed_dim: of the layer.
        schedule: how to train.
        seed: of the layer's initial weights and the order of the images.
        max_steps: stop after so many steps, with the schedule unchanged; None: all.
        name: for the progress bar.
        backbone_parameters: in fine-tuning: also trained. A last batch of a single image is then left out.

    Raises:
        ValueError: if the training set is smaller than one batch and short batches are left out.
        FloatingPointError: if the last loss is not finite.
    """
    n, batch, also_trained = len(labels), schedule.batch_size, list(backbone_parameters)
    per_epoch = schedule.per_epoch(n)
    if also_trained and per_epoch > 1 and n % batch == 1 and not schedule.drop_last:
        per_epoch -= 1  # BatchNorm has no statistics of a single image; which image is left out changes with the epoch
    if not per_epoch:
        raise ValueError(f"{name}: {n} images are less than a batch of {batch}: no step could be taken")
    last = min(schedule.epochs * per_epoch, max_steps or schedule.epochs * per_epoch)
    with seeded(seed):
        layer = nn.Linear(embed_dim, classes).to(labels.device)
    with torch.enable_grad():
        optimizer = schedule.build_optimizer([*layer.parameters(), *also_trained])
        loss = torch.zeros(())
        with Progress(name, last, "images", scale=min(batch, n)) as bar:
            for step in range(last):
                epoch, index = divmod(step, per_epoch)
                if index == 0:
                    order = send(torch.from_numpy(np.argsort(philox(seed, epoch, PROBE_ORDER, n), kind="stable")), labels.device)
                rows = order[index * batch : (index + 1) * batch]
                optimizer.param_groups[0]["lr"] = schedule.rate(step, per_epoch)
                loss = F.cross_entropy(layer(features(rows, step)), labels[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                bar.add()
    if not math.isfinite(loss.item()):
        raise FloatingPointError(f"{name}: the loss is {loss.item()} at rate {schedule.learning_rate:g}: try a lower one")
    return Linear(layer.weight.detach().cpu(), layer.bias.detach().cpu())


def on_features(features: Tensor, labels: Tensor, **options: Any) -> Linear:
    """Return `fit` on precomputed features (N, D), in float32."""
    features = features.float()
    return fit(lambda rows, _: features[rows], labels, embed_dim=features.shape[1], **options)


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
    **options: Any,
) -> Linear:
    """Return `fit` on features of augmented images from a frozen module, which gets no gradient.

    Args:
        module: (N, C, H, W) to (N, embed_dim).
        images, labels: (N, C, H, W) uint8 and (N,), on the device of the module.
        views: `crop_and_flip_views`, one per step.
        make_views: `views` itself or its compiled form.
        dtype: of the module's parameters.
        autocast: returns the context of the forward pass.
        embed_dim: dimensions of the features.
        schedule, seed: see `fit`; the crops depend on the seed too.
        cached: compute features of so many views of every image in advance, and use one set per epoch in turn; None: new views
            at every step.
        options: of `fit`.
    """
    features = torch.no_grad()(of_views(module, images, views=views, make_views=make_views, dtype=dtype, autocast=autocast, seed=seed))

    def from_cache(sets: int) -> Callable[[Tensor, int], Tensor]:
        # Half precision: 16 sets of 50,000 features of 512 dimensions take 0.8 GB.
        cache = torch.empty(sets, len(images), embed_dim, dtype=torch.float16, device=images.device)
        chunks = torch.split(torch.arange(len(images), device=images.device), at_once(math.prod(images.shape[2:])))
        with Progress("views", sets * len(images), "images") as bar:
            for i, (one, rows) in enumerate((one, rows) for one in range(sets) for rows in chunks):
                cache[one, rows] = features(rows, i).half()
                bar.add(len(rows))
        per_epoch = schedule.per_epoch(len(images))
        return lambda rows, step: cache[step // per_epoch % sets, rows].float()

    with frozen(module):
        source = features if cached is None else from_cache(cached)
        return fit(source, labels, embed_dim=embed_dim, schedule=schedule, seed=seed, **options)


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
    """Return a function from (rows (B,), step) to features (B, D) of new views of these images. Args: as `on_views`."""

    def features(rows: Tensor, step: int) -> Tensor:
        u = send(views.draw(seed, step, len(rows)), images.device, dtype)
        (x,) = make_views(images[rows], u)
        with autocast():
            h: Tensor = module(x.contiguous(memory_format=torch.channels_last))
        return h.float()

    return features


def crop_and_flip_views(
    image_shape: tuple[int, int, int], *, crop_scale: Sequence[float], mean: Sequence[float], std: Sequence[float]
) -> Views:
    """Return views for probes, one per image: RandomResizedCrop with areas in `crop_scale`, and a flip with probability 1/2."""
    off = dict.fromkeys(("jitter_p", "brightness", "contrast", "saturation", "hue", "grayscale_p", "blur_p", "solarize_p"), 0.0)
    spec = ViewSpec(
        size=image_shape[1],
        crop_scale=crop_scale,
        crop_ratio=(3 / 4, 4 / 3),
        interpolation="bilinear",
        flip_p=0.5,
        blur_kernel=3,
        blur_sigma=(0.1, 2.0),
        **off,
    )
    return Views(image_shape=image_shape, specs=[spec], mean=mean, std=std)
