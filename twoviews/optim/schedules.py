"""The learning rate as a pure function of the step."""

import math

DROP, DROP_AT = 0.2, (0.05, 0.025)  # of the step schedule: the factor of each drop, and the share of the run that follows it
UNITS = ("step", "epoch", "next_epoch")


def learning_rate(
    step: int, *, steps: int, steps_per_epoch: int, peak: float, floor: float, warmup_epochs: float, schedule: str, unit: str
) -> float:
    """Return the rate of a step: linear warm-up, then cosine (Loshchilov & Hutter 2017, eq. 5), two drops, or constant.

    Args:
        step: 0 <= step < steps: the optimiser step about to be taken.
        steps, steps_per_epoch: length of the run and of an epoch in optimiser steps.
        peak, floor: absolute learning rates, 0 <= floor <= peak. They are not scaled again.
        warmup_epochs: length of the warm-up; the rate of its first step is peak / warm-up steps, never 0.
        schedule: `cosine`, from `peak` to `floor`; `step`: a fifth of `peak` for the last 5 % of the run and a fifth of that for
            the last 2.5 % (W-MSE, Ermolov et al. 2021: 50 and 25 of 1,000 epochs); `constant`.
        unit: `step`; `epoch`: the rate changes only between epochs; `next_epoch`: as `epoch`, but each epoch has the rate of the
            next one, as where epochs are counted from 1. The last epoch of a cosine then has the rate `floor`.

    Raises:
        ValueError: if a value is out of its range.
    """
    if not 0 <= floor <= peak or schedule not in ("cosine", "step", "constant") or unit not in UNITS:
        raise ValueError(
            f"learning rate: expected 0 <= floor <= peak, cosine|step|constant, {'|'.join(UNITS)}, got {floor}, {peak}, {schedule}, {unit}"
        )
    warmup = round(warmup_epochs * steps_per_epoch)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    if unit != "step":
        step = (step // steps_per_epoch + (unit == "next_epoch")) * steps_per_epoch
    if schedule == "step":
        return max(floor, peak * DROP ** sum(step >= steps - share * steps for share in DROP_AT))
    progress = max(0, step - warmup) / max(1, steps - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def cosine(start: float, end: float, progress: float) -> float:
    """Return a value that goes from start to end as half a cosine, at a progress in [0, 1]."""
    return end - (end - start) * (math.cos(math.pi * progress) + 1) / 2


def resolve_learning_rate(rate: float | None, base: float, batch_size: int) -> float:
    """Return the peak rate: `rate`, or if it is None `base` x batch / 256 (Goyal et al. 2017). Nothing else scales it."""
    return rate if rate is not None else base * batch_size / 256
