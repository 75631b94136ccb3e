"""Files and words are data: nothing that TwoViews reads is run as code."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import payloads
import pytest
import tiny as small
from command_helpers import refused

import twoviews
from twoviews import runs

PACKAGE = Path(twoviews.__file__).parent


def unsafe(path: Path) -> list[str]:
    """Return the calls in a file that could run what they read."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        runs_code = ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.full_load")
        wrong = {
            "call": name in runs_code or name.split(".")[-1] in ("instantiate", "unsafe_load"),
            # pickles.py reads CIFAR's files with an unpickler that accepts five names (test_cifar.py)
            "pickle": name.startswith("pickle.") and name != "pickle.UnpicklingError",
            "weights_only": name == "torch.load" and given.get("weights_only") != "True",
            "allow_pickle": name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False",
            "shell": given.get("shell") == "True",
        }
        found += [f"{path.name}:{node.lineno} {name} ({kind})" for kind, is_wrong in wrong.items() if is_wrong]
    return found


def test_k5_the_package_calls_nothing_that_runs_what_it_reads() -> None:
    assert [call for path in PACKAGE.rglob("*.py") for call in unsafe(path)] == []


def test_such_a_call_would_be_found(tmp_path: Path) -> None:
    calls = ["eval(x)", "hydra.utils.instantiate(x)", "pickle.load(f)", "yaml.load(f)", "torch.load(f)", "np.load(f)", "run(x, shell=True)"]
    (tmp_path / "a.py").write_text("\n".join([*calls, "torch.load(f, weights_only=True)", "yaml.safe_load(f)", "re.compile(x)"]))
    assert len(unsafe(tmp_path / "a.py")) == len(calls)


@pytest.mark.parametrize("form", payloads.FORMS)
def test_x1_code_in_a_file_is_refused_wherever_the_file_is_read(
    capsys: pytest.CaptureFixture[str], finished: Path, data: Path, tmp_path: Path, form: str
) -> None:
    path, marker = tmp_path / "run", tmp_path / "ran"
    shutil.copytree(finished, path)
    (path / runs.PREVIOUS).unlink(missing_ok=True)
    blob = payloads.make(form, marker)
    (path / runs.LAST).write_bytes(payloads.sealed(blob))
    assert "more than tensors" in refused(capsys, "pretrain", f"resume={path}")
    assert "more than tensors" in refused(capsys, "evaluate", f"run={path}", "probes=moco_demo")
    (path / runs.BACKBONE).write_bytes(blob)
    other = tmp_path / "weights.safetensors"
    other.write_bytes(blob)
    for words in (["evaluate", f"run={path}"], ["pretrain", *small.words(data, tmp_path / "runs", f"init={other}")]):
        assert "not a safetensors file" in refused(capsys, *words)
    for weights_file in (path, other):
        with pytest.raises(ValueError, match="not a safetensors file"):
            twoviews.load_backbone(weights_file)
    assert not marker.exists()
