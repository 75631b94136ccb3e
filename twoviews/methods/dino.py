"""DINO (Caron et al. 2021, https://arxiv.org/abs/2104.14294), for ResNets: predict a slow teacher's softmax over prototypes.

The teacher sees the views of the largest size, the student all (multi-crop). Difference from the paper: the head has ReLU.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twoviews import distributed
from twoviews.losses import cross_entropy
from twoviews.methods.base import Loss, WithProjector
from twoviews.models.forward import of_views
from twoviews.models.heads import Prototypes
from twoviews.models.momentum import cosine_ramp, ema_update, momentum_copy


class DINO(WithProjector):
    """The student: backbone, projector and prototypes; the teacher: a momentum copy of all three; and the centre (algorithm 1).

    Args:
        prototypes: K, outputs of the last layer, which is weight-normalised with length 1.
        temperature: of the student, > 0.
        teacher_temperature, teacher_temperature_end: of the teacher, > 0; it changes as a cosine over the run.
        centre_decay: of the moving average of the teacher's outputs.
        ema_decay, ema_decay_end: decay of the teacher, rising as a cosine.
        freeze_until: share of the run until which the last layer is frozen.
        probe_teacher: evaluate and save the teacher's backbone, not the student's.
        one_forward: all views of one size in one forward pass (authors' code), or one pass per view.
        projector: see `WithProjector`.
    """

    centre: Tensor

    def __init__(
        self,
        *,
        prototypes: int,
        temperature: float,
        teacher_temperature: float,
        teacher_temperature_end: float,
        centre_decay: float,
        ema_decay: float,
        ema_decay_end: float,
        freeze_until: float,
        probe_teacher: bool,
        one_forward: bool,
        **projector: Any,
    ) -> None:
        super().__init__(**projector)
        self.prototypes = Prototypes(projector["out_dim"], prototypes, weight_norm=True)
        self.teacher = momentum_copy(nn.Sequential(self.backbone, self.projector, self.prototypes))
        self.register_buffer("centre", torch.zeros(prototypes))
        self.temperature, self.centre_decay, self.freeze_until = temperature, centre_decay, freeze_until
        self.teacher_temperatures, self.ema_decays = (teacher_temperature, teacher_temperature_end), (ema_decay, ema_decay_end)
        self.probe_teacher, self.one_forward = probe_teacher, one_forward

    def modules_to_probe(self) -> dict[str, nn.Module]:
        return {"h": self.teacher[0], "z": self.teacher[:2]} if self.probe_teacher else super().modules_to_probe()

    def forward(self, views: list[Tensor], labels: Tensor | None = None, progress: Tensor | None = None) -> Loss:
        student = [self.prototypes(z) / self.temperature for z in of_views(self.project, views, one_forward=self.one_forward)]
        full = [i for i, x in enumerate(views) if x.shape[-1] == max(y.shape[-1] for y in views)]
        with torch.no_grad():
            teacher = of_views(self.teacher, [views[i] for i in full], one_forward=self.one_forward)  # (N, K) each
            temperature = cosine_ramp(*self.teacher_temperatures, torch.zeros(()) if progress is None else progress)
            targets = [F.softmax((t - self.centre) / temperature, dim=1) for t in teacher]
            self.centre.lerp_(distributed.mean(torch.stack(teacher).mean((0, 1))).to(self.centre.dtype), 1 - self.centre_decay)
        losses = [cross_entropy(s, targets[n]) for n, i in enumerate(full) for j, s in enumerate(student) if i != j]
        return torch.stack(losses).mean(), {}

    def before_step(self, progress: Tensor) -> None:
        self.prototypes.before_step(progress, frozen_until=self.freeze_until)

    def after_step(self, progress: Tensor) -> None:
        self.prototypes.after_step(progress, frozen_until=self.freeze_until)
        for copy, trained in zip(self.teacher, (self.backbone, self.projector, self.prototypes), strict=True):
            ema_update(copy, trained, cosine_ramp(*self.ema_decays, progress))
