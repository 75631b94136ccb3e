"""The GPU path without a GPU: fake tensors have a device and a shape but no values, and a step has to get by without looking at any."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import contract
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from twoviews import build, config, device, momentum, optim
from twoviews.methods import METHODS
from twoviews.views import Views

# A momentum copy is a deep copy, which asks where a tensor lies.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")

# Each of these has the host wait for the device, or gives a result whose shape depends on values: no CUDA graph holds it.
WAITS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim", "unique_consecutive")


class Watch(TorchDispatchMode):
    """Notes every operation that waits, and every tensor that leaves its device or comes to it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += func.namespace == "aten"  # kernels: not questions about a tensor
        if name in WAITS:
            self.seen.append(name)
        masks = [x for x in (args[1] if name in ("index", "index_put_") else ()) if isinstance(x, Tensor) and x.dtype == torch.bool]
        if masks:
            self.seen.append(f"{name} by a mask")
        if name == "_fused_sgd_":  # one kernel, of which torch has no fake
            return None
        out = func(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_", "_foreach_copy_"):
            devices = {x.device.type for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)}
            if len(devices) > 1:
                self.seen.append(f"{name} between {' and '.join(sorted(devices))}")
        return out


@contextlib.contextmanager
def on_a_gpu() -> Iterator[Watch]:
    """Everything that is made inside lies on a GPU that is not there."""
    watch, mode = Watch(), FakeTensorMode()
    deepcopy = copy.deepcopy
    with pytest.MonkeyPatch.context() as patch, mode, torch.device("cuda:0"), watch:
        patch.setattr(momentum.copy, "deepcopy", lambda module: deepcopy(module, {id(mode): mode}))  # a tensor's mode is not to be copied
        yield watch


def views(channels: int, **changes: Any) -> Views:
    """Every operation that there is."""
    card = config.load("pretrain", ["recipe=simclr_cifar10"])
    given = {name: card[name] for name in ("crop_scale", "crop_ratio", "flip_p", "jitter_p", "brightness", "contrast")}
    given |= {"saturation": 0.4, "hue": 0.1, "grayscale_p": 0.2, "blur_p": 0.5, "blur_kernel": 3, "blur_sigma": (0.1, 2.0)}
    given |= {"solarize_p": 0.1, "mean": (0.5,) * channels, "std": (0.25,) * channels, "image_shape": (channels, 32, 32)}
    return Views(**{**given, "interpolation": "bilinear", "view_sizes": [32, 24], **changes})


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_views_wait_for_nothing(interpolation: str) -> None:
    made = views(3, interpolation=interpolation)
    numbers = made.draw(0, 0, 8)
    with on_a_gpu() as watch:
        images = torch.zeros(16, 3, 32, 32, dtype=torch.uint8)
        rows = torch.zeros(8, dtype=torch.int64)
        u = torch.zeros(numbers.shape)
        out = made(images[rows], u)
        assert [x.shape[2] for x in out] == [32, 24]
        assert all(x.device.type == "cuda" for x in out)
    assert watch.seen == []
    assert watch.count > 50


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon", "lars"])
@pytest.mark.parametrize("name", list(METHODS))
def test_a_step_waits_for_nothing(name: str, optimizer: str) -> None:
    made, labels, _ = contract.batch(name)
    with on_a_gpu() as watch:
        method = contract.tiny(name)
        steps = optim.build(
            method.param_groups(), optimizer=optimizer, momentum=0.9, nesterov=optimizer != "adam", weight_decay=1e-4, decay_norms=False
        )
        inputs = [torch.zeros(x.shape) for x in made], None if labels is None else torch.zeros(labels.shape, dtype=torch.int64)
        progress = torch.zeros(())
        watch.seen.clear()
        for _ in range(2):  # an optimiser's first step makes its state
            loss, extras = method(*inputs, progress)
            for p in method.parameters():  # no backward: autograd asks the driver for the device
                p.grad = torch.zeros(p.shape) if p.requires_grad else None
            for group in steps.param_groups:
                group["lr"] = 0.1
            steps.step()
            steps.zero_grad(set_to_none=True)
            method.after_step(progress)
        assert loss.device.type == "cuda"
        assert all(x.ndim == 0 for x in extras.values())
    assert watch.seen == []


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon", "lars"])
def test_an_optimisers_step_is_as_few_kernels_for_many_layers_as_for_one(optimizer: str) -> None:
    """But for Muon's products, which are compiled, and what LARS asks of each layer's length."""
    counts = []
    with on_a_gpu() as watch:
        for layers in (1, 12):
            params = [torch.nn.Parameter(torch.zeros(8, 8)) for _ in range(layers)]
            steps = optim.build(
                [{"params": params}], optimizer=optimizer, momentum=0.9, nesterov=False, weight_decay=1e-4, decay_norms=True
            )
            if isinstance(steps, optim.Muon):
                steps.directions = lambda updates: updates  # type: ignore[assignment]
            for _ in range(2):
                for p in params:
                    p.grad = torch.zeros(8, 8)
                before = watch.count
                steps.step()
            counts.append(watch.count - before)
    assert counts[0] == counts[1] <= 20


def test_a_gpu_compiles_the_forward_and_keeps_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda module, **how: asked.append(how) or module)
    method = contract.tiny("simclr")
    for where, compile in (("cpu", True), ("cuda", False), ("cuda", True)):
        assert build.forward_on(device.Machine(torch.device(where), 1, "bf16", compile), method) is method
    assert asked == [{"dynamic": False, "fullgraph": True, "options": {"force_layout_optimization": True}}]
    assert "force_layout_optimization" in torch._inductor.list_options()


def test_muons_step_has_the_layout_of_its_weight() -> None:
    """Or a GPU would add each by a kernel of its own."""
    updates = [torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last), torch.randn(8, 4, 3, 3), torch.randn(5, 7), torch.randn(5)]
    assert [step.stride() for step in optim.directions(updates)] == [update.stride() for update in updates]


def test_views_of_a_dozen_batch_sizes_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and the probes have whole and last batches of their own, and torch gives up at the ninth shape by default."""
    torch._dynamo.reset()
    made = views(3)
    with torch._dynamo.config.patch(recompile_limit=torch._dynamo.config.recompile_limit):  # put back after the test
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            patch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
            patch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
            for name in ("allow_tf32", "benchmark"):
                patch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
            assert device.choose(device="cuda", threads=torch.get_num_threads(), precision="auto", compile="auto").compile
        compiled = torch.compile(made.__call__, backend="eager", dynamic=False, fullgraph=True)
        for n in range(2, 14):
            assert len(compiled(torch.zeros(n, 3, 32, 32, dtype=torch.uint8), made.draw(0, 0, n))[0]) == n


def test_a_step_that_waits_would_be_seen() -> None:
    with on_a_gpu() as watch:
        x = torch.zeros(4)
        with pytest.raises(DataDependentOutputException):
            x.sum().item()
        _ = x.cpu()
        _ = x.to("cpu", torch.float64)
        x.copy_(torch.zeros(4, device="cpu"), non_blocking=True)
    assert watch.seen[0] == "_local_scalar_dense"
    assert [seen.split()[0] for seen in watch.seen[1:]] == ["_to_copy", "_to_copy", "copy_"]
