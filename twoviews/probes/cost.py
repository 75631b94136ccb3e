"""How long probes take: an estimate from two short measurements, printed before they start."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from twoviews.probes import protocols
from twoviews.probes.linear import curvature_flops
from twoviews.probes.minibatch import Schedule

MEASURED = 128  # images of the measured forward pass
SIDE = 1024  # rows and columns of the measured matrix product
LBFGS = 200  # evaluations of the linear probe's objective on all rows, of all weight decays together
CURVATURES = 8  # computed by the linear probe: one for each weight decay, and two or three for the last fit
NARROW = 4.0  # a product with few columns, such as one per class, is slower than the measured one by this factor
STEP = 3e-4  # seconds of a minibatch step on features beside its products
VIEWS = 1.3  # time of a forward pass with augmentation, relative to one without
BACKWARD = 3.0  # time of a forward and backward pass, relative to a forward pass


@dataclass(frozen=True)
class Rates:
    """What this machine needs.

    Args:
        image: seconds of a forward pass, per image.
        flop: seconds of a large matrix product, per floating-point operation.
    """

    image: float
    flop: float


def measure(forward: Callable[[int], object]) -> Rates:
    """Return the rates of this machine.

    Args:
        forward: computes the features of so many images.
    """
    a = torch.ones(SIDE, SIDE)

    def seconds(run: Callable[[], object]) -> float:
        run()  # the first call allocates memory and may compile
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    return Rates(seconds(lambda: forward(MEASURED)) / MEASURED, seconds(lambda: a @ a) / (2 * SIDE**3))


def seconds(
    steps: Sequence[Sequence[str]],
    rates: Rates,
    *,
    rows: int,
    queries: int,
    dims: tuple[int, int],
    classes: int,
    schedule: Callable[..., Schedule],
    baselines: bool = True,
) -> float:
    """Return roughly how long an evaluation takes.

    Args:
        steps: names of probes; those of a kNN search together.
        rates: of this machine.
        rows: images that probes are fitted on and choose neighbours from.
        queries: images whose classes are predicted.
        dims: of raw pixels, and of the networks' features.
        classes: of the data set.
        schedule: returns the schedule of a probe, as `protocols.schedule`.
        baselines: raw pixels and a second network are evaluated, too.
    """
    features = (dims[0], dims[1], dims[1]) if baselines else (dims[1],)
    total = (1 + baselines) * rates.image * (rows + queries)
    for name, *_ in steps:
        if name in protocols.KNN:
            total += sum(rates.flop * 2.0 * rows * queries * one for one in features)
            continue
        for share in protocols.SHARES.get(name, (1.0,)):
            few = rows * share
            if name in protocols.ON_IMAGES:
                networks, factor = (1 + baselines, BACKWARD) if name in protocols.TUNED else (1, 1.0)
                total += networks * factor * VIEWS * schedule(name, share=share).epochs * few * rates.image
            else:
                training = schedule(name) if name == "linear_precomp adam" else None
                total += sum(_fitted(rates, round(few), one, classes, training) for one in features)
    return total


def _fitted(rates: Rates, rows: int, dims: int, classes: int, training: Schedule | None) -> float:
    """Return the seconds of a linear probe on features: by L-BFGS, or trained by a schedule."""
    product = NARROW * rates.flop * 4.0 * rows * dims * classes
    if training is None:
        return LBFGS * product + CURVATURES * rates.flop * curvature_flops(rows, dims, classes)
    return training.epochs * (product + STEP * training.per_epoch(rows))
