"""`twoviews doctor`: what this machine has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from twoviews.cli import main


def test_doctor_prints_what_there_is_and_what_would_be_chosen(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", f"runs_dir={tmp_path}", "threads=1", "device=cpu"]) == 0
    out = capsys.readouterr().out
    for word in ("chosen", "cpu (", "1 threads", torch.__version__, "GPU", "compiler", "GiB free", "Fashion-MNIST"):
        assert word in out
