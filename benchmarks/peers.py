"""Training as other tools do it, in plain PyTorch: the contenders of `steps.py`, `job.py` and `evaluation.py`.

None of them uses the fast path (`twoviews.cpu`). All train the same network: torchvision's blocks, the projector, loss, views
and SGD of dkobak/simclr-cifar10.

- `plain_loop`: the fastest loop that we could write by hand with public libraries;
- `dkobak`: as dkobak/simclr-cifar10 does it;
- `lightly_simclr`, `lightly_moco`: lightly's parts in the loop of its documentation.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from measure import timed
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from twoviews import device
from twoviews.losses import nt_xent
from twoviews.models.heads import mlp
from twoviews.models.resnet import build_backbone

IMAGES, EPOCH, WORKERS, RATE = 4096, 50_000, device.cores(), 0.03
PREFETCHED = 2 * WORKERS  # batches that a DataLoader has ready before the first step ends
SCALE, JITTER, GRAY = (0.2, 1.0), (0.4, 0.4, 0.4, 0.1), 0.2  # views of dkobak/simclr-cifar10


def made_images(count: int = IMAGES) -> Tensor:
    """Return (N, 3, 32, 32) uint8: random blocks of colour, which take as long as photographs."""
    blocks = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return blocks.repeat_interleave(4, 2).repeat_interleave(4, 3)


def to_pil(images: Tensor) -> list[Image.Image]:
    """Return (N, 3, H, W) uint8 as PIL images."""
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


def dkobak_transform() -> transforms.Compose:
    """Return the transform that makes one view of a PIL image."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(32, scale=SCALE),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(*JITTER)], p=0.8),
            transforms.RandomGrayscale(GRAY),
            transforms.ToTensor(),
        ]
    )


def kornia_pipeline(**jitter: Any) -> nn.Module:
    """Return kornia's augmentations of a whole batch, with parameters per image."""
    import kornia.augmentation as K

    return K.AugmentationSequential(
        K.RandomResizedCrop((32, 32), scale=SCALE),
        K.RandomHorizontalFlip(p=0.5),
        K.ColorJitter(*JITTER, p=0.8, **jitter),
        K.RandomGrayscale(p=GRAY),
        data_keys=["input"],
    )


def lightly_transform() -> Callable[[Any], Any]:
    """Return lightly's transform with the same settings: both views of a PIL image."""
    from lightly.transforms import SimCLRTransform

    return SimCLRTransform(input_size=32, cj_strength=0.5, min_scale=SCALE[0], gaussian_blur=0.0, normalize=None)


class Pictures(Dataset):
    """PIL images under a transform, repeated until an epoch is as long as CIFAR-10's."""

    def __init__(self, images: Tensor, transform: Callable[[Any], Any]) -> None:
        self.pictures = to_pil(images)
        self.transform = transform

    def __len__(self) -> int:
        return EPOCH

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.pictures[i % len(self.pictures)])


class Twice:
    """Two views by one transform. Not a lambda, which cannot be sent to a worker process."""

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    def __call__(self, picture: Any) -> tuple[Any, Any]:
        return self.transform(picture), self.transform(picture)


def forever(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


def build_encoder(net: str, width: int = 1024) -> tuple[nn.Module, nn.Module]:
    """Return backbone and projector in plain PyTorch."""
    torch.manual_seed(0)
    backbone, embed_dim = build_backbone(net, in_channels=3, image_size=32)
    return backbone, mlp([embed_dim, width, 128], hidden_bn=False, output_bn=False)


def sgd(*modules: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return torch.optim.SGD(parameters, RATE, momentum=0.9, weight_decay=5e-4, foreach=True)


def fastest_kornia(batch: int) -> Callable[[Tensor], Tensor]:
    """Return the fastest of kornia's forms on this machine, after each has run a few times."""
    forms: dict[str, Callable[[Tensor], Tensor]] = {"eager": kornia_pipeline()}
    if device.compiler():
        forms |= {"compiled": torch.compile(kornia_pipeline()), "compiled, one order": torch.compile(kornia_pipeline(order=(0, 1, 2, 3)))}
    x, seconds = torch.rand(2 * batch, 3, 32, 32), {}
    for name, form in forms.items():
        with warnings.catch_warnings(), contextlib.suppress(Exception):  # a form that does not compile here is left out
            warnings.simplefilter("ignore")
            for _ in range(6):
                seconds[name], _ = timed(lambda form=form: form(x))
    best = min(seconds, key=lambda name: seconds[name])
    print(f"kornia, {best}: {seconds}", file=sys.stderr)
    return forms[best]


def plain_loop(net: str, batch: int) -> Iterator[None]:
    """Train by the fastest loop that we could write by hand, one step per item."""
    images, views = made_images(), fastest_kornia(batch)
    backbone, head = (module.to(memory_format=torch.channels_last) for module in build_encoder(net))
    optimizer = sgd(backbone, head)
    bf16 = device.has_bf16("cpu")
    while True:
        rows = torch.randint(IMAGES, (batch,))
        x = images[rows].float() / 255
        both = views(torch.cat([x, x])).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            z = head(backbone(both))
        loss = nt_xent(z, 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


def dkobak_step(backbone: nn.Module, head: nn.Module, optimizer: torch.optim.Optimizer, views: list[Tensor]) -> None:
    """Take one step of SimCLR as dkobak/simclr-cifar10 does it: float32, one forward per view, all logits at once."""
    z = F.normalize(torch.cat([head(backbone(x)) for x in views]))
    logits = (z @ z.T / 0.5).fill_diagonal_(-torch.inf)
    rows = len(views[0])
    optimizer.zero_grad()
    F.cross_entropy(logits, (torch.arange(2 * rows) + rows) % (2 * rows)).backward()
    optimizer.step()


def dkobak(net: str, batch: int) -> Iterator[None]:
    """Train as dkobak/simclr-cifar10 does it, one step per item."""
    data = Pictures(made_images(), Twice(dkobak_transform()))
    backbone, head = build_encoder(net)
    optimizer = sgd(backbone, head)
    for views in forever(DataLoader(data, batch, shuffle=True, drop_last=True, num_workers=WORKERS)):
        dkobak_step(backbone, head, optimizer, views)
        yield


def dkobak_linear_precomp(bank: Tensor, labels: Tensor, classes: int) -> nn.Linear:
    """Return its `lin precomp` probe, trained as its script does it: Adam 0.1, 100 epochs, batch 1000, cosine per epoch."""
    layer = nn.Linear(bank.shape[1], classes)
    optimizer = torch.optim.Adam(layer.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    for _ in range(100):
        for rows in torch.randperm(len(bank)).split(1000):
            optimizer.zero_grad()
            F.cross_entropy(layer(bank[rows]), labels[rows]).backward()
            optimizer.step()
        schedule.step()
    return layer


def lightly_simclr(net: str, batch: int) -> Iterator[None]:
    """Train by lightly's parts in its documented loop, one step per item."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    data = Pictures(made_images(), lightly_transform())
    backbone, _ = build_encoder(net)
    head = SimCLRProjectionHead(_embed_dim(backbone), 1024, 128, batch_norm=False)
    criterion, optimizer = NTXentLoss(temperature=0.5), sgd(backbone, head)
    for one, two in forever(DataLoader(data, batch, shuffle=True, drop_last=True, num_workers=WORKERS)):
        loss = criterion(head(backbone(one).flatten(1)), head(backbone(two).flatten(1)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def lightly_moco(net: str, batch: int) -> Iterator[None]:
    """Train MoCo by lightly's parts: momentum copies, and the queue in its loss."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import MoCoV2Transform

    transform = MoCoV2Transform(input_size=32, cj_strength=1.0, cj_hue=0.1, gaussian_blur=0.0, normalize=None)
    data = Pictures(made_images(), transform)
    backbone, _ = build_encoder(net)
    head = MoCoProjectionHead(_embed_dim(backbone), 512, 128)
    slow_backbone, slow_head = copy.deepcopy(backbone), copy.deepcopy(head)
    deactivate_requires_grad(slow_backbone)
    deactivate_requires_grad(slow_head)
    criterion, optimizer = NTXentLoss(temperature=0.1, memory_bank_size=(4096, 128)), sgd(backbone, head)
    for query, key in forever(DataLoader(data, batch, shuffle=True, drop_last=True, num_workers=WORKERS)):
        update_momentum(backbone, slow_backbone, m=0.99)
        update_momentum(head, slow_head, m=0.99)
        q = head(backbone(query).flatten(1))
        with torch.no_grad():
            k = slow_head(slow_backbone(key).flatten(1))
        loss = criterion(q, k)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def _embed_dim(backbone: nn.Module) -> int:
    training = backbone.training
    with torch.no_grad():
        width = backbone.eval()(torch.zeros(1, 3, 32, 32)).shape[1]
    backbone.train(training)
    return width
