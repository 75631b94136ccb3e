"""The contract between the training loop and a method: these tests run on every method, a new one included."""

from __future__ import annotations

import copy
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path

import contract
import pytest
import torch
from torch import Tensor

from twoviews import build, config, optim, runs, train
from twoviews.methods import METHODS

every_method = pytest.mark.parametrize("name", list(METHODS))
with_one_forward = pytest.mark.parametrize("name", [name for name in METHODS if "one_forward" in contract.hyper_parameters(name)])


@every_method
def test_forward_returns_a_finite_0_dim_loss_and_0_dim_extras(name: str) -> None:
    loss, extras = contract.tiny(name)(*contract.batch(name))
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert all(isinstance(value, Tensor) and value.shape == () for value in extras.values())
    assert not {"step", "epoch", "loss", "lr", "views_per_s", "seconds"} & set(extras), "names of the loop's own metrics"


@every_method
def test_all_trainable_parameters_and_no_others_get_a_finite_gradient(name: str) -> None:
    method = contract.tiny(name)
    loss, _ = method(*contract.batch(name))
    loss.backward()
    for key, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key
        else:
            assert parameter.grad is None, key
    assert any(p.grad.abs().max() > 0 for p in method.backbone.parameters()), "no gradient reaches the backbone"


@every_method
def test_param_groups_hold_every_trainable_parameter_once(name: str) -> None:
    method = contract.tiny(name)
    given = [id(p) for group in method.param_groups() for p in group["params"]]
    assert len(given) == len(set(given))
    assert set(given) == {id(p) for p in method.parameters() if p.requires_grad}


@every_method
def test_forward_and_backward_change_no_parameter(name: str) -> None:
    method = contract.tiny(name)
    before = copy.deepcopy(dict(method.named_parameters()))
    loss, _ = method(*contract.batch(name))
    loss.backward()
    assert all(torch.equal(p, before[key]) for key, p in method.named_parameters())


@every_method
def test_forward_does_not_change_its_inputs(name: str) -> None:
    views, labels, progress = contract.batch(name)
    before = copy.deepcopy((views, labels, progress))
    contract.tiny(name)(views, labels, progress)
    assert all(torch.equal(a, b) for a, b in zip(views, before[0], strict=True))
    assert labels is None or torch.equal(labels, before[1])
    assert torch.equal(progress, before[2])


@every_method
def test_a_step_lowers_the_loss_of_its_own_batch(name: str) -> None:
    method, (views, labels, progress) = contract.tiny(name), contract.batch(name)
    groups = method.param_groups()
    optimizer = optim.build(groups, optimizer="sgd", momentum=0.0, nesterov=False, weight_decay=0.0, decay_norms=True)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    loss, _ = copy.deepcopy(method)(views, labels, progress)  # of a copy, because a forward pass may write a queue
    method_before = copy.deepcopy(method)
    method(views, labels, progress)[0].backward()
    optimizer.step()
    with torch.no_grad():
        for p, stepped in zip(method_before.parameters(), method.parameters(), strict=True):
            p.copy_(stepped)  # the old buffers with the new weights
    assert method_before(views, labels, progress)[0] < loss


@every_method
def test_after_a_step_the_state_stays_finite_and_the_next_loss_too(name: str) -> None:
    method, (views, labels, progress) = contract.tiny(name), contract.batch(name)
    method(views, labels, progress)[0].backward()
    method.before_step(progress)
    method.after_step(progress)
    assert all(torch.isfinite(tensor).all() for tensor in method.state_dict().values())
    assert torch.isfinite(method(views, labels, progress)[0])


@every_method
def test_only_methods_that_use_labels_depend_on_them(name: str) -> None:
    method, (views, labels, progress) = contract.tiny(name), contract.batch(name)
    if METHODS[name].uses_labels:
        other = labels // 2  # merges classes: a loss may depend on the partition alone
        assert copy.deepcopy(method)(views, other, progress)[0] != copy.deepcopy(method)(views, labels, progress)[0]
        with pytest.raises(ValueError, match="labels"):
            method(views, None, progress)
    else:
        poison = torch.arange(contract.IMAGES) % contract.CLASSES
        assert torch.equal(copy.deepcopy(method)(views, poison, progress)[0], copy.deepcopy(method)(views, None, progress)[0])


@every_method
def test_features_have_one_row_per_image_and_h_has_embed_dim_columns(name: str) -> None:
    method = contract.tiny(name).eval()
    images = contract.batch(name)[0][0]
    features = method.modules_to_probe()
    with torch.no_grad():
        shapes = {key: module(images).shape for key, module in features.items()}
        assert shapes["h"] == (contract.IMAGES, contract.EMBED_DIM)
        assert all(len(shape) == 2 and shape[0] == contract.IMAGES for shape in shapes.values())
        assert torch.equal(features["h"](images), method.backbone(images))


@every_method
def test_the_state_dict_holds_the_whole_state(name: str) -> None:
    views, labels, progress = contract.batch(name)
    first, second = contract.tiny(name, seed=0), contract.tiny(name, seed=1)
    first(views, labels, progress)[0].backward()
    first.before_step(progress)
    first.after_step(progress)
    second.load_state_dict(first.state_dict())
    for _ in range(2):  # the second loss depends on what the first forward pass wrote, such as a queue
        assert torch.equal(first(views, labels, progress)[0], second(views, labels, progress)[0])
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


@every_method
def test_a_forward_is_a_function_of_its_state_and_arguments(name: str) -> None:
    method, arguments = contract.tiny(name), contract.batch(name)
    torch.manual_seed(1)
    first = copy.deepcopy(method)(*arguments)[0]
    torch.manual_seed(2)
    assert torch.equal(copy.deepcopy(method)(*arguments)[0], first)


@every_method
def test_forward_compiles_to_one_graph_that_computes_the_same(name: str) -> None:
    changes = {"bn_splits": 2} if "bn_splits" in contract.hyper_parameters(name) else {}  # each one is traced by itself
    method, arguments = contract.tiny(name, **changes), contract.batch(name)
    eager = copy.deepcopy(method)
    torch._dynamo.reset()
    compiled = torch.compile(method, backend="aot_eager", fullgraph=True, dynamic=False)
    loss, expected = compiled(*arguments)[0], eager(*arguments)[0]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for (key, a), b in zip(method.named_parameters(), eager.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), key
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=key)
    for (key, a), b in zip(method.state_dict().items(), eager.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=key)  # buffers that forward writes: statistics, a queue, its cursor


@every_method
def test_float64_stays_float64(name: str) -> None:
    views, labels, progress = contract.batch(name)
    loss, _ = contract.tiny(name).double()([view.double() for view in views], labels, progress)
    assert loss.dtype == torch.float64


@every_method
def test_the_constructor_is_keyword_only_and_has_no_defaults(name: str) -> None:
    for key, parameter in inspect.signature(METHODS[name]).parameters.items():
        assert parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD), key
        assert parameter.default is inspect.Parameter.empty, f"{key}: the recipe sets the value, not the code"


@every_method
def test_a_recipe_of_the_method_sets_its_hyper_parameters(name: str) -> None:
    recipe = contract.recipes(name)[0]  # tests/config/test_schema.py checks all of them
    cfg = contract.settings(recipe)
    assert (cfg.recipe, cfg.method) == (recipe, name)
    assert set(contract.hyper_parameters(name)) <= set(cfg)


@every_method
def test_the_method_trains_from_its_recipe(name: str, tmp_path: Path, fast: None) -> None:
    # fashion_mini has one channel, so colour operations change nothing, and every recipe fits
    sizes = ",".join(["12"] * len(contract.sizes(name)))
    values = contract.small(name, batch=16) | ({"queue_size": 512} if "queue_size" in contract.hyper_parameters(name) else {})
    small = " ".join(f"{key}={value}" for key, value in values.items()).replace(", ", ",")
    words = (
        f"recipe={contract.recipes(name)[0]} dataset=fashion_mini backbone=thin16 batch_size=16 view_sizes=[{sizes}] max_steps=3 {small}"
    )
    machine = f"probe_every=0 precision=fp32 compile=false threads=1 device=cpu runs_dir={tmp_path}"
    cfg = config.load("pretrain", [*words.split(), *machine.split()])
    parts = build.build(cfg)
    before = copy.deepcopy(parts.method.state_dict())
    with runs.RunFolder(runs.create(tmp_path, name, "{}")) as run:
        code, summary = train.fit(cfg, parts, run)
    assert (code, summary["steps"]) == (0, 3)
    after = parts.method.state_dict()
    assert any(not torch.equal(after[key], before[key]) for key in after if key.startswith("backbone.") and key.endswith("weight"))


@with_one_forward
def test_one_forward_changes_only_the_statistics_of_batchnorm(name: str) -> None:
    together, separate = contract.tiny(name, one_forward=True), contract.tiny(name, one_forward=False)
    arguments = contract.batch(name)
    losses = [copy.deepcopy(method)(*arguments)[0] for method in (together, separate)]
    assert all(torch.isfinite(loss) for loss in losses)
    assert not torch.allclose(*losses, rtol=1e-6), "each forward pass must normalise over its own views"
    torch.testing.assert_close(together.eval()(*arguments)[0], separate.eval()(*arguments)[0])


@with_one_forward
@pytest.mark.parametrize("one_forward", [True, False])
def test_views_of_different_sizes_are_accepted(name: str, one_forward: bool) -> None:
    views, labels, progress = contract.batch(name)
    smaller = [views[0], *(view[:, :, :8, :8] for view in views[1:])]
    loss, _ = contract.tiny(name, one_forward=one_forward, num_full_views=1)(smaller, labels, progress)
    assert torch.isfinite(loss)


NEW_METHOD = '''"""A minimal method: it minimises the distance between the projections of two views."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from twoviews.methods.base import Method
from twoviews.models.heads import mlp


class NewOne(Method):
    """Backbone, projector and the squared distance of the first two views."""

    def __init__(self, *, backbone: nn.Module, embed_dim: int, out_dim: int, temperature: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = mlp([embed_dim, out_dim], hidden_bn=False, output_bn=True)
        self.temperature = temperature

    def forward(self, views, labels=None, progress=None):
        first, second = (F.normalize(self.projector(self.backbone(x)), dim=1) for x in views[:2])
        return (first - second).square().sum(1).mean() / self.temperature, {"first_norm": first.detach().norm()}
'''


def _contract_tests() -> list[Callable[..., None]]:
    tests = [test for name, test in globals().items() if name.startswith("test_")]
    return [test for test in tests if any(mark is every_method.mark for mark in getattr(test, "pytestmark", []))]


FAULTS = {
    "labels are used": (
        "        return (first",
        "        first = first if labels is None else first + labels.float().mean()\n        return (first",
    ),
    "no gradient": ("self.backbone(x)", "self.backbone(x).detach()"),
    "a parameter is written": ("        return (first", "        self.projector[1].bias.data += 1\n        return (first"),
    "a view is written": ("        first, second", "        views[0].mul_(2)\n        first, second"),
    "one loss per image": (".sum(1).mean()", ".sum(1)"),
    "an extra that is a float": ("first.detach().norm()", "float(first.detach().norm())"),
    "state outside buffers": (
        "        return (first",
        "        self.calls = getattr(self, 'calls', 0) + 1\n        return self.calls * (first",
    ),
    "global random numbers": ("        return (first", "        first = first + torch.rand(())\n        return (first"),
    "float32 inside": ("self.backbone(x))", "self.backbone(x)).float()"),
    "a default": ("temperature: float)", "temperature: float = 0.5)"),
    "a gradient of the wrong sign": (
        "        return (first - second)",
        "        first = 2 * first.detach() - first\n        second = 2 * second.detach() - second\n        return (first - second)",
    ),
    "a name that the loop uses": ('"first_norm"', '"lr"'),
}


@pytest.mark.parametrize("fault", ["none", *FAULTS])
def test_the_contract_tests_find_every_fault(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = FAULTS.get(fault, ("", ""))
    assert old in NEW_METHOD
    (tmp_path / "faulty.py").write_text(NEW_METHOD.replace(old, new) if old else NEW_METHOD)
    spec = importlib.util.spec_from_file_location("faulty", tmp_path / "faulty.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = contract.recipes("simclr")  # have the two hyper-parameters that this method takes
    monkeypatch.setitem(METHODS, "newone", module.NewOne)
    monkeypatch.setattr(contract, "recipes", lambda method: names)
    tests = [test for test in _contract_tests() if "recipe" not in test.__name__]
    tests.sort(key=lambda test: "compiles" in test.__name__)  # the slowest last
    assert any(_fails(test) for test in tests) == (fault != "none")


def _fails(test: Callable[..., None]) -> bool:
    try:
        test("newone")
    except (AssertionError, RuntimeError, AttributeError):
        return True
    return False
