"""What a single process of several does by itself: tests that need no other process."""

from __future__ import annotations

import json
from pathlib import Path

import contract
import pytest
import tiny
import torch

from twoviews import build, config, device, distributed, runs
from twoviews.cli import main
from twoviews.distributed import processes


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process be the second of four, of two on this machine."""
    monkeypatch.setattr(processes, "_group", processes.Group(1, 4, 1, 2, 4, None))


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("batch_size=30", "batch_size=30: 4 processes cannot share it: choose a multiple of 4"),
        ("batch_size=4", "batch_size=4: each of 4 processes needs two images: choose at least 8"),
        (
            "batch_size=36 drop_last=false train_size=642",
            "drop_last=false: 4 processes cannot share the last batch of 30 images: use drop_last=true",
        ),
    ],
)
def test_a_batch_that_the_processes_cannot_share_is_refused(
    words: str, message: str, several: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "first_on_each_machine", lambda work: work())
    cfg = config.load("pretrain", ["recipe=fashion_thin", "dataset=fashion_mini", "device=cpu", "compile=false", *words.split()])
    with pytest.raises(ValueError) as raised:
        build.build(cfg)
    assert str(raised.value) == message


def test_mocos_sub_batches_are_shared_out_or_refused(several: None) -> None:
    with pytest.raises(ValueError, match="bn_splits=2: 4 processes cannot share them: choose a multiple of 4, or 1"):
        contract.tiny("moco", bn_splits=2, batch_size=16)
    assert {getattr(part, "splits", 2) for part in contract.tiny("moco", bn_splits=8, batch_size=16).modules()} == {2}


def test_a_process_has_its_share_of_the_threads_and_its_own_gpu(several: None, monkeypatch: pytest.MonkeyPatch) -> None:
    before, chosen = torch.get_num_threads(), list[int]()
    monkeypatch.setattr(device, "cores", lambda: 7)
    try:
        assert device.choose(device="cpu", threads=None, precision="fp32", compile=False).threads == 3
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        with pytest.raises(ValueError, match="device=mps: one process only"):
            device.choose(device="mps", threads=1, precision="fp32", compile=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        with pytest.raises(ValueError, match="2 processes on a machine with 1 GPUs: start torchrun with --nproc-per-node=1"):
            device.choose(device="cuda", threads=1, precision="fp32", compile=False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        with device.gpu_settings_restored():
            device.choose(device="cuda", threads=1, precision="fp32", compile=False)
        assert chosen == [1]
    finally:
        torch.set_num_threads(before)


def test_a_folder_of_another_process_is_not_read_locked_or_written(tmp_path: Path) -> None:
    path = runs.create(tmp_path, "a", "seed: 0\n")
    before = sorted(path.iterdir())
    with runs.RunFolder(path) as writer, runs.RunFolder(path, writes=False) as other:
        other.write(runs.MANIFEST, {"seed": 1})
        other.log([{"step": 0, "loss": 1.0}])
        other.truncate_metrics(0)
        assert (writer.writes, other.writes, other.identity) == (True, False, "")
    with runs.RunFolder(path):  # the lock is free
        pass
    assert [file for file in sorted(path.iterdir()) if not file.name.startswith(".")] == before


def test_the_same_number_of_processes_is_needed_to_resume(
    few: Path, tmp_path: Path, fast: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", *tiny.words(few, tmp_path, "max_steps=2", batch=tiny.FEW_BATCH)]) == 0
    path = tiny.only_run(tmp_path)
    assert tiny.read_json(path, runs.MANIFEST)["processes"] == 1
    tiny.change(path, runs.MANIFEST, processes=4)
    capsys.readouterr()
    assert main(["pretrain", f"resume={path}"]) == 2
    assert "the run has 4 processes, this command 1, and BatchNorm computes other values then: start as many" in capsys.readouterr().err


def test_other_commands_run_in_the_first_process_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["runs", f"runs_dir={tmp_path}"]
    assert main(words) == 2, "there are no runs"
    monkeypatch.setenv("RANK", "1")
    assert main(words) == 2, "without torchrun"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(words) == 0


def test_a_program_that_has_joined_its_processes_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match=r"torch\.distributed is in use already: call destroy_process_group"), distributed.group(1):
        pass


def test_torchruns_report_has_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert main(["pretrain", "epochs=0"]) == 2
    message = json.loads((tmp_path / "error.json").read_text())["message"]
    assert message["message"].startswith("epochs=0: epochs expects an integer")
    assert message["extraInfo"]["py_callstack"] == f"twoviews: {message['message']}"
    assert int(message["extraInfo"]["timestamp"]) > 1e9


def test_an_error_of_communication_names_the_processes_that_are_lost(several: None, monkeypatch: pytest.MonkeyPatch) -> None:
    store = torch.distributed.HashStore()
    monkeypatch.setattr(processes, "GRACE", 0.01)
    for other in (0, 3):
        store.set(f"left {other}", "")
    with (
        pytest.raises(distributed.ProcessLost, match="the process of rank 2 ended, or did not answer for 5 s; the last checkpoint is kept"),
        processes._naming_lost_processes(store, 5.0),
    ):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    with pytest.raises(RuntimeError, match="of another kind"), processes._naming_lost_processes(store, 5.0):
        raise RuntimeError("of another kind")
