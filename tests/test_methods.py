"""The contract between the loop and a method, checked for every method there is: a new one is found by itself."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import contract
import pytest
import torch
from torch import Tensor

import twoviews
from twoviews import build, config, optim, rules, runs, train
from twoviews.losses import cross_entropy, nt_xent
from twoviews.methods import METHODS
from twoviews.views import Views

every_method = pytest.mark.parametrize("name", list(METHODS))
PACKAGE = Path(twoviews.__file__).parent


def test_the_command_line_takes_exactly_the_methods_there_are() -> None:
    assert set(rules.RULES["method"].choices) == set(METHODS)


@every_method
def test_forward_gives_a_finite_0_dim_loss_and_0_dim_extras(name: str) -> None:
    loss, extras = contract.tiny(name)(*contract.batch(name))
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert all(isinstance(value, Tensor) and value.shape == () for value in extras.values())
    assert not {"step", "epoch", "loss", "lr", "views_per_s", "seconds"} & set(extras), "these names of the metrics are the loop's"


@every_method
def test_every_trainable_parameter_gets_a_finite_gradient_and_no_other_one_does(name: str) -> None:
    method = contract.tiny(name)
    loss, _ = method(*contract.batch(name))
    loss.backward()
    for key, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key
        else:
            assert parameter.grad is None, key
    assert any(p.grad.abs().max() > 0 for p in method.backbone.parameters()), "nothing reaches the backbone"


@every_method
def test_the_optimiser_gets_every_trainable_parameter_once(name: str) -> None:
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
def test_forward_leaves_its_inputs_alone(name: str) -> None:
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
    loss, _ = copy.deepcopy(method)(views, labels, progress)  # a copy: the first of two calls may write a queue
    method_before = copy.deepcopy(method)
    method(views, labels, progress)[0].backward()
    optimizer.step()
    with torch.no_grad():
        for p, stepped in zip(method_before.parameters(), method.parameters(), strict=True):
            p.copy_(stepped)  # the same buffers, the new weights
    assert method_before(views, labels, progress)[0] < loss


@every_method
def test_after_a_step_the_state_stays_finite_and_the_next_loss_too(name: str) -> None:
    method, (views, labels, progress) = contract.tiny(name), contract.batch(name)
    method(views, labels, progress)
    method.after_step(progress)
    assert all(torch.isfinite(tensor).all() for tensor in method.state_dict().values())
    assert torch.isfinite(method(views, labels, progress)[0])


@every_method
def test_labels_reach_only_methods_that_use_them(name: str) -> None:
    method, (views, labels, progress) = contract.tiny(name), contract.batch(name)
    if METHODS[name].uses_labels:
        other = (labels + 1) % contract.CLASSES
        assert copy.deepcopy(method)(views, other, progress)[0] != copy.deepcopy(method)(views, labels, progress)[0]
        with pytest.raises(ValueError, match="labels"):
            method(views, None, progress)
    else:
        poison = torch.arange(contract.IMAGES) % contract.CLASSES
        assert torch.equal(copy.deepcopy(method)(views, poison, progress)[0], copy.deepcopy(method)(views, None, progress)[0])


@every_method
def test_features_are_one_row_an_image_and_h_is_as_wide_as_the_backbone(name: str) -> None:
    method = contract.tiny(name).eval()
    images = contract.batch(name)[0][0]
    features = method.features()
    with torch.no_grad():
        shapes = {key: module(images).shape for key, module in features.items()}
        assert shapes["h"] == (contract.IMAGES, contract.EMBED_DIM)
        assert all(len(shape) == 2 and shape[0] == contract.IMAGES for shape in shapes.values())
        assert torch.equal(features["h"](images), method.backbone(images))


@every_method
def test_the_state_goes_through_a_state_dict_whole(name: str) -> None:
    views, labels, progress = contract.batch(name)
    first, second = contract.tiny(name, seed=0), contract.tiny(name, seed=1)
    first(views, labels, progress)
    first.after_step(progress)
    second.load_state_dict(first.state_dict())
    for _ in range(2):  # the second loss depends on what the first wrote: a queue and its cursor, say
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
def test_forward_is_one_graph_and_the_graph_computes_the_same(name: str) -> None:
    method, arguments = contract.tiny(name), contract.batch(name)
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
        torch.testing.assert_close(a, b, msg=key)  # buffers that the forward writes: statistics, a queue and its cursor


@every_method
def test_float64_stays_float64(name: str) -> None:
    views, labels, progress = contract.batch(name)
    loss, _ = contract.tiny(name).double()([view.double() for view in views], labels, progress)
    assert loss.dtype == torch.float64


@every_method
def test_the_constructor_is_keyword_only_and_has_no_defaults(name: str) -> None:
    for key, parameter in inspect.signature(METHODS[name]).parameters.items():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, key
        assert parameter.default is inspect.Parameter.empty, f"{key}: the value stands in the card, not in the code"


@every_method
def test_cards_hold_the_methods_hyper_parameters_and_nothing_that_no_one_reads(name: str) -> None:
    source = "".join(path.read_text() for path in [*PACKAGE.glob("*.py"), *PACKAGE.glob("commands/*.py")] if path.name != "config.py")
    read_by_the_loop = set(re.findall(r"cfg\.(\w+)", source)) | set(re.findall(r'cfg\["(\w+)"\]', source))
    read_by_the_loop |= set(re.findall(r'"(\w+)"', re.search(r"cfg\[key\].* for key in \((.*?)\)", source)[1]))
    read_by_views = set(inspect.signature(Views).parameters)
    for path in contract.card_paths(name):
        keys = set(contract.read_card(path))
        assert set(contract.hyper_parameters(name)) <= keys, path
        assert keys <= set(contract.hyper_parameters(name)) | read_by_the_loop | read_by_views, path


@every_method
def test_every_card_of_the_method_composes_under_its_own_name(name: str) -> None:
    for path in contract.card_paths(name):
        cfg = config.load("pretrain", [f"recipe={path.stem}"])
        assert (cfg.recipe, cfg.method) == (path.stem, name)


@every_method
def test_the_method_trains_from_its_card(name: str, tmp_path: Path) -> None:
    card = contract.card_paths(name)[0].stem
    # fashion_mini has one channel, for which colour operations are identities: every card fits
    words = f"recipe={card} dataset=fashion_mini backbone=thin32 batch_size=16 view_sizes=[12,12] max_steps=3 probe_every=0 precision=fp32"
    cfg = config.load("pretrain", [*words.split(), "compile=false", "threads=1", "device=cpu", f"runs_dir={tmp_path}"])
    parts = build.build(cfg)
    before = copy.deepcopy(parts.method.state_dict())
    with runs.RunFolder(runs.create(tmp_path, name, "{}")) as run:
        code, summary = train.fit(cfg, parts, run)
    assert (code, summary["steps"]) == (0, 3)
    after = parts.method.state_dict()
    assert any(not torch.equal(after[key], before[key]) for key in after if key.startswith("backbone.") and key.endswith("weight"))


@pytest.mark.parametrize("name", [name for name in METHODS if "one_forward" in contract.hyper_parameters(name)])
def test_one_forward_for_all_views_or_one_for_each_differ_in_batch_norm_only(name: str) -> None:
    together, apart = contract.tiny(name, one_forward=True), contract.tiny(name, one_forward=False)
    arguments = contract.batch(name)
    losses = [copy.deepcopy(method)(*arguments)[0] for method in (together, apart)]
    assert all(torch.isfinite(loss) for loss in losses)
    assert not torch.allclose(*losses, rtol=1e-6), "each forward must normalise over the views it sees"
    torch.testing.assert_close(together.eval()(*arguments)[0], apart.eval()(*arguments)[0])


@pytest.mark.parametrize("name", [name for name in METHODS if "one_forward" in contract.hyper_parameters(name)])
@pytest.mark.parametrize("one_forward", [True, False])
def test_views_of_several_sizes_are_taken_either_way(name: str, one_forward: bool) -> None:
    views, labels, progress = contract.batch(name)
    smaller = [views[0], *(view[:, :, :8, :8] for view in views[1:])]
    loss, _ = contract.tiny(name, one_forward=one_forward)(smaller, labels, progress)
    assert torch.isfinite(loss)


# --- single methods -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_forward", [True, False])
@pytest.mark.parametrize("count", [2, 3])
def test_simclr_is_nt_xent_of_its_projections(count: int, one_forward: bool) -> None:
    method = contract.tiny("simclr", one_forward=one_forward, temperature=0.3)
    (first, second), _, progress = contract.batch("simclr")
    views = [first, second, first.flip(3)][:count]
    project = method.features()["z"]
    z = project(torch.cat(views)) if one_forward else torch.cat([project(view) for view in views])
    torch.testing.assert_close(method(views, None, progress)[0], nt_xent(z, 0.3, count))
    shuffled = z.view(count, contract.IMAGES, -1).transpose(0, 1).flatten(0, 1)
    assert abs(nt_xent(shuffled, 0.3, count) - nt_xent(z, 0.3, count)) > 1e-3, "the batch must tell a wrong pairing from the right one"


@pytest.mark.parametrize("temperature", [0.0, -0.5])
def test_simclr_refuses_a_temperature_that_is_not_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        contract.tiny("simclr", temperature=temperature)


def test_supervised_is_cross_entropy_of_every_view_with_the_images_label() -> None:
    method = contract.tiny("supervised").eval()
    views, labels, progress = contract.batch("supervised")
    logits = [method.classifier(method.backbone(view)) for view in views]
    loss, extras = method(views, labels, progress)
    torch.testing.assert_close(loss, sum(cross_entropy(part, labels) for part in logits) / len(views))
    hits = torch.cat([part.argmax(1) == labels for part in logits]).float().mean()
    torch.testing.assert_close(extras["train_accuracy"], hits)


# --- a new method ---------------------------------------------------------------------------------------------------

NEW_METHOD = '''"""Two views of an image should point the same way; a linear map stands in for whatever keeps them from collapsing."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from twoviews.heads import mlp
from twoviews.methods.base import Method


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


def _run_contract_on_a_copy(folder: Path) -> tuple[int, str]:
    """Copy the package, add a method (one file, one card, one import and one line of the dict), run its contract tests there."""
    shutil.copytree(PACKAGE, folder / "twoviews", ignore=shutil.ignore_patterns("__pycache__"))
    here = Path(__file__).parent
    shutil.copytree(here, folder / "tests", ignore=shutil.ignore_patterns("__pycache__", "stored"))
    shutil.copy(here.parent / "pyproject.toml", folder)
    methods = folder / "twoviews" / "methods"
    (methods / "newone.py").write_text(NEW_METHOD)
    names = methods / "__init__.py"
    text = names.read_text()
    dictionary = "METHODS: dict[str, type[Method]] = {\n"
    assert dictionary in text
    names.write_text(text.replace(dictionary, f'from twoviews.methods.newone import NewOne\n\n{dictionary}    "newone": NewOne,\n'))

    card = contract.read_card(contract.card_paths("simclr")[0])
    drop = set(contract.hyper_parameters("simclr")) - {"out_dim", "temperature"}
    changed = {**{key: value for key, value in card.items() if key not in drop}, "recipe": "newone", "method": "newone"}
    lines = [
        f"{key}: {'null' if value is None else str(value).lower() if isinstance(value, bool) else value}" for key, value in changed.items()
    ]
    (folder / "twoviews" / "conf" / "recipe" / "newone.yaml").write_text("\n".join(["# @package _global_", *lines, ""]))

    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    words = [
        "tests/test_methods.py",
        "-k",
        "newone",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
        "--basetemp",
        str(folder / "tmp"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_a_new_method_is_one_file_one_card_one_line_and_is_tested_without_more(tmp_path: Path) -> None:
    code, output = _run_contract_on_a_copy(tmp_path)
    assert code == 0, output
    passed = re.search(r"(\d+) passed", output)
    assert passed, output
    assert int(passed[1]) == len(_contract_tests()) > 10


FAULTS = {
    "labels are used": (
        "        return (first",
        "        first = first if labels is None else first + labels.float().mean()\n        return (first",
    ),
    "no gradient": ("self.backbone(x)", "self.backbone(x).detach()"),
    "a parameter is written": ("        return (first", "        self.projector[1].bias.data += 1\n        return (first"),
    "a view is written": ("        first, second", "        views[0].mul_(2)\n        first, second"),
    "one loss an image": (".sum(1).mean()", ".sum(1)"),
    "an extra that is a float": ("first.detach().norm()", "float(first.detach().norm())"),
    "a state that is no buffer": (
        "        return (first",
        "        self.calls = getattr(self, 'calls', 0) + 1\n        return self.calls * (first",
    ),
    "a random state": ("        return (first", "        first = first + torch.rand(())\n        return (first"),
    "float32 inside": ("self.backbone(x))", "self.backbone(x)).float()"),
    "a default": ("temperature: float)", "temperature: float = 0.5)"),
    "a gradient that climbs": (
        "        return (first - second)",
        "        first = 2 * first.detach() - first\n        second = 2 * second.detach() - second\n        return (first - second)",
    ),
    "a name of the loop's": ('"first_norm"', '"lr"'),
}


@pytest.mark.parametrize("fault", ["none", *FAULTS])
def test_the_contract_finds_what_breaks_it(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = FAULTS.get(fault, ("", ""))
    assert old in NEW_METHOD
    (tmp_path / "faulty.py").write_text(NEW_METHOD.replace(old, new) if old else NEW_METHOD)
    spec = importlib.util.spec_from_file_location("faulty", tmp_path / "faulty.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    card = contract.card_paths("simclr")  # has the two hyper-parameters that this method takes
    monkeypatch.setitem(METHODS, "newone", module.NewOne)
    monkeypatch.setattr(contract, "card_paths", lambda method: card)
    need_a_card_of_their_own = ("cards", "every_card", "trains_from")
    tests = [test for test in _contract_tests() if not any(word in test.__name__ for word in need_a_card_of_their_own)]
    assert any(_fails(test) for test in tests) == (fault != "none")


def _fails(test: Callable[..., None]) -> bool:
    try:
        test("newone")
    except (AssertionError, RuntimeError, AttributeError):
        return True
    return False
