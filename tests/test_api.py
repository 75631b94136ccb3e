"""The Python interface: `from twoviews import ...`."""

from __future__ import annotations

import gc
import locale
import logging
import os
import random
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny as small
import torch
from command_helpers import fail_with, pretrained
from safetensors.torch import save_file

import twoviews
from twoviews import build, config, device, runs
from twoviews.probes.embed import embed
from twoviews.report import html


def test_the_names_of_the_python_interface_exist() -> None:
    public = {"Views", "ViewSpec", "nt_xent", "knn", "linear", "load_backbone", "pretrain", "evaluate", "embed", "Embedder", "StepFailed"}
    assert set(twoviews.__all__) == set(dir(twoviews)) == set(twoviews._MODULES) == public
    assert all(callable(getattr(twoviews, name)) for name in public)
    with pytest.raises(AttributeError, match="nosuch"):
        twoviews.nosuch  # noqa: B018 - the look-up is the test


def test_pretrain_from_python_is_the_command(few: Path, tmp_path: Path, fast: None) -> None:
    command = pretrained(few, tmp_path / "command", "probes='knn,linear_precomp'")
    path = twoviews.pretrain(
        "fashion_thin",
        dataset="fashion_mnist",
        data_dir=str(few),
        backbone="thin16",
        batch_size=small.FEW_BATCH,
        epochs=1,
        probes="knn,linear_precomp",
        probe_every=0,
        threads=1,
        compile=False,
        precision="fp32",
        device="cpu",
        max_steps=None,
        crop_scale=[0.3, 1.0],
        runs_dir=tmp_path / "a, b=c",
    )
    assert path.parent == tmp_path / "a, b=c"
    assert (path / runs.BACKBONE).read_bytes() == (command / runs.BACKBONE).read_bytes()
    with pytest.raises(ValueError, match="did you mean epochs"):
        twoviews.pretrain("fashion_thin", epoch=1)


def test_load_backbone_gives_the_runs_own_features(finished: Path, data: Path) -> None:
    module = twoviews.load_backbone(finished)
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    parts = build.build(config.load("pretrain", small.words(data, finished.parent, f"init={finished}")))
    images = parts.dataset.test_images
    with torch.no_grad():
        h = module((images.float() / 255 - module.mean) / module.std)
    torch.testing.assert_close(h, parts.embed(parts.method.backbone, images), rtol=1e-4, atol=1e-5)
    mean, std = module.mean.flatten().tolist(), module.std.flatten().tolist()
    again = embed(module, images, mean=mean, std=std, device=torch.device("cpu"), autocast=parts.machine.autocast)
    row = twoviews.knn(again[:50], parts.dataset.test_labels[:50], again[50:], parts.dataset.test_labels[50:], ks=[1])
    assert 0 <= row[1] <= 1


@pytest.mark.parametrize("form", ["missing", "of another program"])
def test_load_backbone_refuses_files_that_twoviews_did_not_write(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.safetensors"
    if form != "missing":
        save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"no such file|not written by TwoViews"):
        twoviews.load_backbone(path)


def test_init_reaches_the_momentum_encoder_too(tiny: list[str], finished: Path) -> None:
    words = [word for word in tiny if not word.startswith("recipe=")]
    cfg = config.load("pretrain", [*words, "recipe=moco", f"init={finished}", "queue_size=128", "bn_splits=4"])
    method = build.build(cfg).method
    loaded = twoviews.load_backbone(finished).state_dict()
    for key, value in method.momentum_encoder[0].state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(value, loaded[key].to(value.dtype)), key


# ---- a good guest ----

REAL_REPORT = html.write


def own_data() -> tuple[Any, Any]:
    """Return 40 images of 16 x 16 pixels and their labels."""
    images = np.random.default_rng(3).integers(0, 256, (40, 16, 16, 3), np.uint8)
    return images, np.arange(40) % 4


def trained(runs_dir: Path, **more: Any) -> Path:
    """Return the folder of a short run on own data."""
    settings = {"backbone": "thin16", "batch_size": 8, "epochs": 1, "probes": "knn,linear_augm", "probe_every": 1, "probe_epochs": 1}
    machine = {"threads": 1, "compile": False, "precision": "fp32", "device": "cpu"}
    return twoviews.pretrain("cifar_thin", data=own_data(), runs_dir=runs_dir, **{**settings, **machine, **more})


def fingerprint() -> dict[str, Any]:
    """Return the state of this process that a caller may rely on. What libraries do at their first import is theirs."""
    import matplotlib.figure
    import sklearn.manifold  # noqa: F401 - its first import changes filters and the environment
    from hydra.core.singleton import Singleton

    signals = [signal.getsignal(number) for number in signal.valid_signals()]
    random_states = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    threads = torch.get_num_threads(), torch.get_num_interop_threads(), threading.excepthook, sys.excepthook
    kinds = torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    cudnn = torch.backends.cudnn
    arithmetic = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, np.geterr()
    limits = torch._dynamo.config.recompile_limit, torch.are_deterministic_algorithms_enabled(), sys.getrecursionlimit()
    messages = list(warnings.filters), warnings.showwarning, logging.root.level, list(logging.root.handlers), logging.root.disabled
    drawing = {key: dict.__getitem__(matplotlib.rcParams, key) for key in matplotlib.rcParams}  # looking it up would choose a backend
    process = dict(os.environ), list(sys.argv), Path.cwd(), locale.setlocale(locale.LC_ALL), gc.isenabled(), os.umask(os.umask(0o22))
    streams = sys.stdout, sys.stderr, getattr(sys.stdout, "errors", ""), socket.getdefaulttimeout()
    os.umask(process[-1])
    names = ("signals", "random", "threads", "kinds", "arithmetic", "limits", "messages", "drawing", "process", "streams", "hydra")
    hydra_state = {kind: vars(instance).copy() for kind, instance in Singleton._instances.items()}
    values = (signals, random_states, threads, kinds, arithmetic, limits, messages, drawing, process, streams, hydra_state)
    return dict(zip(names, values, strict=True))


def in_main(action: Callable[[], None]) -> None:
    action()


def in_a_thread(action: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def inside_hydra_main(action: Callable[[], None]) -> None:
    import hydra
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="base", node={"theirs": 1})  # the caller's own file of this name
    called = []

    (Path.cwd() / "theirs").mkdir()

    @hydra.main(version_base="1.2", config_path=str(Path.cwd() / "theirs"))
    def job(cfg: Any) -> None:
        called.append(action())

    with pytest.MonkeyPatch.context() as patch:
        quiet = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none"]
        patch.setattr(sys, "argv", ["app", *quiet])
        job()
    assert called == [None]


@pytest.mark.parametrize("place", [in_main, in_a_thread, inside_hydra_main])
def test_pretrain_changes_nothing_in_the_program_that_calls_it(
    place: Callable[[Callable[[], None]], None], fast: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html, "write", REAL_REPORT)
    monkeypatch.setattr(device, "keep_freed_memory", lambda: pytest.fail("its settings cannot be read, so they cannot be restored"))
    monkeypatch.chdir(tmp_path)

    def check() -> None:
        torch.set_num_threads(2)
        before = fingerprint()
        path = trained(tmp_path / "runs")
        after = fingerprint()
        assert [name for name in before if before[name] != after[name]] == []
        assert (path / runs.REPORT).is_file()
        rows = twoviews.evaluate(path, data=own_data(), probes="knn", threads=1, compile=False, precision="fp32")
        twoviews.load_backbone(path)
        twoviews.embed(path, own_data()[0][:3])
        assert [name for name in before if before[name] != fingerprint()[name]] == []
        assert len(rows) >= 3

    try:
        place(check)
    finally:
        torch.set_num_threads(1)


@pytest.mark.usefixtures("fast")
def test_a_callers_settings_do_not_change_the_result_and_are_restored(tmp_path: Path) -> None:
    expected = trained(tmp_path / "plain", probes="knn")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), np.errstate(all="raise"), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
            path = trained(tmp_path / "odd", probes="knn")
            assert torch.is_inference_mode_enabled()
            assert torch.is_autocast_enabled("cpu")
            assert torch.get_default_device().type == "meta"
            assert np.geterr()["under"] == "raise"
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert (path / runs.BACKBONE).read_bytes() == (expected / runs.BACKBONE).read_bytes()


@pytest.mark.usefixtures("fast")
def test_settings_are_restored_after_an_error_too(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match=r"batch_size=64: own data, .* has 36 images"):
            trained(tmp_path, batch_size=64, threads=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert not (tmp_path / "cifar_thin").exists()
    assert not list(tmp_path.iterdir()), "nothing was written"


@pytest.mark.usefixtures("fast")
def test_two_threads_train_one_after_another_and_get_the_same(tmp_path: Path) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(trained(tmp_path, probes="knn"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = ((path / runs.BACKBONE).read_bytes() for path in paths)
    assert first == second


@pytest.mark.usefixtures("fast")
def test_a_signal_is_an_interrupted_error_with_the_call_that_continues(tmp_path: Path) -> None:
    def on_step(step: int, latest: dict[str, Any]) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedError, match=r"stopped by signal 15: to continue: pretrain\(resume='.*', data=\.\.\.\)"):
        trained(tmp_path, on_step=on_step)


@pytest.mark.usefixtures("fast")
def test_errors_have_their_own_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    too_high = {"optimizer": "sgd", "learning_rate": 1000.0, "weight_decay": 1.0, "epochs": 40, "probe_every": 0}
    with pytest.raises(FloatingPointError, match=r"not finite|loss nan|loss inf"):
        trained(tmp_path / "diverged", **too_high)
    monkeypatch.setattr(html, "write", lambda *args: fail_with(RuntimeError("no font")))
    with pytest.raises(twoviews.StepFailed, match="the report failed") as failed:
        trained(tmp_path / "failed", probes="knn")
    assert (failed.value.run / runs.BACKBONE).is_file()
    with pytest.raises(ValueError, match="no such run folder"):
        twoviews.evaluate(tmp_path / "nowhere")
