"""The GPU path without a GPU: fake tensors have a device and a shape but no values, so a step that reads a value fails."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import contract
import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from view_helpers import SIMCLR, views_of

from twoviews import build, device, optim
from twoviews.methods import METHODS
from twoviews.models import momentum
from twoviews.optim import optimizers
from twoviews.views import ops

# The momentum encoder is a deep copy, which asks for the address of a tensor.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")

# For these operations the host waits for the device, or the shape of the result depends on values: no CUDA graph can contain them.
WAITS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim", "unique_consecutive")


class Watch(TorchDispatchMode):
    """Records every operation that waits for the device, and every copy between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += func.namespace == "aten"  # kernels, not questions about a tensor
        if name in WAITS:
            self.seen.append(name)
        masks = [x for x in (args[1] if name in ("index", "index_put_") else ()) if isinstance(x, Tensor) and x.dtype == torch.bool]
        if masks:
            self.seen.append(f"{name} by a mask")
        if name == "_fused_sgd_":  # one kernel, which torch cannot fake
            return None
        out = func(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_", "_foreach_copy_"):
            devices = {x.device.type for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)}
            if len(devices) > 1:
                self.seen.append(f"{name} between {' and '.join(sorted(devices))}")
        return out


@contextlib.contextmanager
def on_a_gpu() -> Iterator[Watch]:
    """Create all tensors inside as fake tensors on a GPU."""
    watch, mode = Watch(), FakeTensorMode()
    deepcopy = copy.deepcopy
    with pytest.MonkeyPatch.context() as patch, mode, torch.device("cuda:0"), watch:
        patch.setattr(momentum.copy, "deepcopy", lambda module: deepcopy(module, {id(mode): mode}))  # the mode itself must not be copied
        yield watch


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_views_contain_no_synchronisation(interpolation: str) -> None:
    views = views_of((3, 32, 32), 32, 24, **SIMCLR, interpolation=interpolation)
    numbers = views.draw(0, 0, 8)
    with on_a_gpu() as watch:
        images = torch.zeros(16, 3, 32, 32, dtype=torch.uint8)
        rows = torch.zeros(8, dtype=torch.int64)
        out = views(images[rows], torch.zeros(numbers.shape))
        assert [x.shape[2] for x in out] == [32, 24]
        assert all(x.device.type == "cuda" for x in out)
    assert watch.seen == []
    assert watch.count > 50


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon", "lars", "larc"])
@pytest.mark.parametrize("name", list(METHODS))
def test_a_step_contains_no_synchronisation(name: str, optimizer: str) -> None:
    views, labels, _ = contract.batch(name)
    with on_a_gpu() as watch:
        method = contract.tiny(name)
        steps = optim.build(
            method.param_groups(),
            optimizer=optimizer,
            momentum=0.9,
            nesterov=not optimizer.startswith("adam"),
            weight_decay=1e-4,
            decay_norms=False,
        )
        inputs = [torch.zeros(x.shape) for x in views], None if labels is None else torch.zeros(labels.shape, dtype=torch.int64)
        progress = torch.zeros(())
        watch.seen.clear()
        for _ in range(2):  # an optimiser creates its state in the first step
            loss, extras = method(*inputs, progress)
            for p in method.parameters():  # no backward, because autograd asks the driver for the device
                p.grad = torch.zeros(p.shape) if p.requires_grad else None
            method.before_step(progress)
            for group in steps.param_groups:
                group["lr"] = 0.1
            steps.step()
            steps.zero_grad(set_to_none=True)
            method.after_step(progress)
        assert loss.device.type == "cuda"
        assert all(x.ndim == 0 for x in extras.values())
    assert watch.seen == []


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon", "lars", "larc"])
def test_an_optimisers_step_has_as_few_kernels_for_many_layers_as_for_one(optimizer: str) -> None:
    """Except Muon's products, which are compiled, and the norms of each layer in LARS."""
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


def test_on_a_gpu_the_forward_pass_is_compiled_in_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda module, **options: calls.append(options) or module)
    method = contract.tiny("simclr")
    for name, compile in (("cpu", True), ("cuda", False), ("cuda", True)):
        forward = build.make_forward(device.Machine(torch.device(name), 1, "bf16", compile), method, 8)
        assert (forward is method) == (not calls)
    assert calls == [{"dynamic": False, "fullgraph": True, "options": build.inductor_options()}]
    assert set(build.inductor_options()) <= set(torch._inductor.list_options())
    assert build.inductor_options()["force_layout_optimization"] is True


def test_the_smaller_last_batch_of_an_epoch_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, called, compile = [], [], torch.compile
    backend = lambda graph, _: compiled.append(graph) or (lambda *args: called.append(graph) or graph.forward(*args))  # noqa: E731
    monkeypatch.setattr(torch, "compile", lambda module, **options: compile(module, backend=backend, dynamic=False, fullgraph=True))
    torch._dynamo.reset()
    method = contract.tiny("simclr")
    forward = build.make_forward(device.Machine(torch.device("cuda"), 1, "bf16", True), method, 8)
    for n, calls in ((8, 1), (5, 1), (8, 2)):
        views = [torch.randn(n, 3, 8, 8)] * 2
        loss, _ = forward(views, None, torch.zeros(()))
        assert (len(compiled), len(called)) == (1, calls)
        assert loss.item() == pytest.approx(method(views)[0].item(), rel=1e-3)


def test_muons_step_has_the_memory_layout_of_its_weight() -> None:
    """With another layout, a GPU adds each step by a separate kernel."""
    updates = [torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last), torch.randn(8, 4, 3, 3), torch.randn(5, 7), torch.randn(5)]
    for directions in (optimizers.directions, optimizers.batched_directions):
        assert [step.stride() for step in directions(updates)] == [update.stride() for update in updates]


def compile_for_twelve_batch_sizes() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(ops.solarize, backend="eager", dynamic=False, fullgraph=True)
    for n in range(2, 14):
        assert len(compiled(torch.zeros(n, 8, 8))) == n


def test_on_a_gpu_functions_are_compiled_for_more_batch_sizes_than_torch_allows_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and probes have whole and last batches of different sizes."""
    with torch._dynamo.config.patch(recompile_limit=torch._dynamo.config.recompile_limit):  # restored after the test
        with pytest.raises(FailOnRecompileLimitHit):
            compile_for_twelve_batch_sizes()
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: True)
            patch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
            patch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
            patch.setattr(device, "cannot_compile", lambda: "")
            for name in ("allow_tf32", "benchmark"):
                patch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
            assert device.choose(device="cuda", threads=torch.get_num_threads(), precision="auto", compile="auto").compile
        compile_for_twelve_batch_sizes()


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
