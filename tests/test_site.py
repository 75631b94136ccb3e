"""The documentation site builds without a warning, and has every page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.long
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "trees")]
    done = subprocess.run([*command, str(ROOT / "docs"), str(tmp_path / "html")], capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    pages = {str(path.relative_to(ROOT / "docs").with_suffix("")) for path in (ROOT / "docs").rglob("[!_]*.md")}
    built = {str(path.relative_to(tmp_path / "html").with_suffix("")) for path in (tmp_path / "html").rglob("*.html")}
    assert pages <= built
    index = (tmp_path / "html/index.html").read_text(encoding="utf-8")
    for page in pages - {"index", "README"}:
        assert f'href="{page}.html"' in index, page
    for page in ("getting-started", "faq"):
        assert 'href="examples/export.html"' in (tmp_path / f"html/{page}.html").read_text(encoding="utf-8").split("</nav>", 1)[-1], page
    api = (tmp_path / "html/api.html").read_text(encoding="utf-8")
    for name in ("pretrain", "Embedder", "nt_xent", "Views", "load", "near_images", "Options"):
        assert f"{name}</span>" in api
    assert "0-dim tensor in float32 (float64 for float64 input): bfloat16" in " ".join(api.split())
