"""A run that was stopped and resumed equals the run that was not stopped: every bit, at every step."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import contract
import pytest
import tiny as small
import torch
from compare import differences
from torch import Tensor

from twoviews import build, config, pretrained, runs, train
from twoviews.methods import METHODS
from twoviews.runs import checkpoint

STEPS = 12
# Five steps an epoch: a probe at every second step, a save at every step, warm-up over three steps, and the end in the third epoch.
LOOP = ("epochs=3", "probe_every=0.4", "checkpoint_every=0.2", "warmup_epochs=0.6", "min_learning_rate=0")

pytestmark = pytest.mark.usefixtures("fast")


def settings(few: Path, *words: str, recipe: str = "fashion_thin") -> config.Config:
    """Return the configuration of a run on 40 images in batches of 8, unless the words say otherwise."""
    return config.load("pretrain", small.words(few, Path("unused"), *words, recipe=recipe, batch=small.FEW_BATCH))


def new_run(tmp_path: Path, name: str) -> Path:
    """Return an empty run folder."""
    return runs.create(tmp_path, name, "seed: 0\n")


def train_until(steps: int, path: Path, cfg: config.Config) -> dict[str, Any]:
    """Start or resume a run, stop it after `steps`, and return all of its state; its parts are built anew, as in a new process."""
    cfg = config.Config({**cfg, "max_steps": steps})
    torch.manual_seed(steps * 1000 + 17)  # the global random state of a resumed process must not matter
    parts = build.build(cfg)
    with runs.RunFolder(path) as folder:
        code, _ = train.fit(cfg, parts, folder)
    assert code == 0
    saved = checkpoint.read(path / runs.LAST)
    assert saved.pop("clock")["total"] > 0
    return {
        "method": parts.method.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "saved": saved,
        "metrics": small.without_times(runs.read_metrics(path)),
    }


def check_stops(tmp_path: Path, cfg: config.Config, stops: Iterable[int]) -> None:
    """Stop a run after each of these steps, resume it, and compare it with the straight run."""
    straight = train_until(STEPS, new_run(tmp_path, "straight"), cfg)
    assert straight["saved"]["step"] == STEPS
    assert differences(straight["saved"]["method"], straight["method"]) == []
    assert [row["step"] for row in straight["metrics"]] == list(range(STEPS))
    assert [row["step"] for row in straight["metrics"] if "val_knn10" in row] == [1, 3, 5, 7, 9, 11]
    assert straight["optimizer"]["state"]
    for k in stops:
        path = new_run(tmp_path, f"stopped-{k}")
        stopped = train_until(k, path, cfg)
        assert stopped["saved"]["step"] == k
        assert differences(stopped["metrics"], straight["metrics"][:k]) == []
        assert differences(train_until(STEPS, path, cfg), straight) == [], f"stopped after step {k}"


@pytest.mark.parametrize("method", METHODS)
def test_r1_a_run_stopped_after_any_step_continues_bit_for_bit(tmp_path: Path, few: Path, method: str) -> None:
    """One step, chosen at random; `make test-hard` stops after every one."""
    chosen = random.randint(1, STEPS - 1)  # another one in every test run: the message names it
    check_stops(tmp_path, settings(few, *LOOP, recipe=contract.recipes(method)[0]), [chosen])


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_r1_a_run_stopped_after_every_step_continues_bit_for_bit(tmp_path: Path, few: Path, method: str) -> None:
    check_stops(tmp_path, settings(few, *LOOP, recipe=contract.recipes(method)[0]), range(1, STEPS))


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("cifar_thin", ["drop_last=false", "batch_size=12"]),  # 40 images: three batches of 12 and one of 4
        ("supervised", ["drop_last=false", "batch_size=12"]),
        ("moco", ["symmetric=true"]),
        ("simclr", ["optimizer=lars", "decay_norms=false"]),
        ("simclr", ["optimizer=adam", "nesterov=false", "base_learning_rate=0.01"]),
    ],
)
def test_r1_other_batches_losses_and_optimisers_continue_bit_for_bit_too(
    tmp_path: Path, few: Path, recipe: str, changes: list[str]
) -> None:
    cfg = settings(few, *LOOP, *changes, recipe=recipe)
    straight = train_until(8, new_run(tmp_path, "straight"), cfg)
    for k in (3, 4):
        path = new_run(tmp_path, f"stopped{k}")
        train_until(k, path, cfg)
        assert differences(train_until(8, path, cfg), straight) == []
    if "drop_last=false" in changes:
        epochs = [row["epoch"] for row in straight["metrics"]]
        assert epochs[:5] == [0, 0.25, 0.5, 0.75, 1.0], "four steps an epoch, the short one among them"


def test_r6_a_chain_of_starts_of_one_step_each_equals_the_straight_run(tmp_path: Path, few: Path) -> None:
    cfg = settings(few, *LOOP)
    straight = train_until(STEPS, new_run(tmp_path, "straight"), cfg)
    path = new_run(tmp_path, "chain")
    for k in range(1, STEPS + 1):
        last = train_until(k, path, cfg)
    assert differences(last, straight) == []


def test_r1_the_default_path_of_a_cpu_continues_bit_for_bit_too(tmp_path: Path, few: Path) -> None:
    """A real run uses bf16 autocast, two threads, and the views in C++ where there is a compiler."""
    cfg = settings(few, "compile=auto", "precision=bf16", "threads=2")
    threads = torch.get_num_threads()
    try:
        straight = train_until(5, new_run(tmp_path, "straight"), cfg)
        path = new_run(tmp_path, "stopped")
        train_until(3, path, cfg)
        assert differences(train_until(5, path, cfg), straight) == []
    finally:
        torch.set_num_threads(threads)


def test_r3_rows_and_views_of_forty_steps_and_eight_after_a_resume_are_the_straight_runs(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = build.make_views

    def watched(machine: Any, views: Any) -> Any:
        make = real(machine, views)

        def recorded(images: Tensor, u: Tensor) -> list[Tensor]:
            out: list[Tensor] = make(images, u)
            seen.append(hashlib.sha256(b"".join(x.contiguous().numpy().tobytes() for x in (images, u, *out))).hexdigest())
            return out

        return recorded

    monkeypatch.setattr(train, "make_views", watched)
    cfg = settings(few, "epochs=10")
    train_until(48, new_run(tmp_path, "straight"), cfg)
    straight, seen[:] = list(seen), []
    path = new_run(tmp_path, "stopped")
    train_until(40, path, cfg)
    train_until(48, path, cfg)
    assert len(set(straight)) == 48
    assert seen == straight


def test_r7_compiled_code_leaves_no_mark_in_a_file(tmp_path: Path, few: Path) -> None:
    """A checkpoint of a compiled run continues without compiled code, and the other way round."""
    cfgs = {compiled: settings(few, f"compile={compiled}") for compiled in ("auto", "false")}
    for first, then in (("auto", "false"), ("false", "auto")):
        path = new_run(tmp_path, first)
        saved = train_until(3, path, cfgs[first])["saved"]
        (path / runs.BACKBONE).write_bytes(build.backbone_bytes(cfgs[first], build.build(cfgs[first]), runs.identity(path)))
        names = [*saved["method"], *pretrained.load_backbone(path).state_dict()]
        assert not [name for name in names if "_orig_mod." in name or name.startswith("module.")]
        assert train_until(5, path, cfgs[then])["saved"]["step"] == 5


def test_differences_finds_every_difference() -> None:
    a = {"w": torch.ones(2), "l": [1, {"x": 0.5}]}
    assert differences(a, {"w": torch.ones(2), "l": [1, {"x": 0.5}]}) == []
    assert differences(a, {"w": torch.tensor([1, 1 + 1e-7]), "l": [1, {"x": 0.5}]}) == ["/w"]
    assert differences(a, {"w": torch.ones(2, dtype=torch.float64), "l": [1, {"x": 0.25}]}) == ["/w", "/l/1/x: 0.5 and 0.25"]
