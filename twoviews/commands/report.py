"""`twoviews report run=<run>`: write a finished run's report.html again; `run=<a>,<b>`: a page that compares runs."""

import shlex
from pathlib import Path

from twoviews import build, inspection, runs
from twoviews.config import Config
from twoviews.images.names import shown
from twoviews.report import html
from twoviews.runs.files import write_atomic

MOST = 8  # runs of a comparison
PAGE, MARK = "comparison.html", '<meta name="generator" content="TwoViews comparison">'


def run(cfg: Config) -> int:
    """Write the report of a finished run, or compare several."""
    names = runs.several(cfg.run, Path(cfg.runs_dir))
    paths = [runs.find(name, Path(cfg.runs_dir)) for name in names]
    for path in paths:
        if not (path / runs.SUMMARY).is_file():
            raise ValueError(f"run={path}: not finished: to finish it: twoviews pretrain {shlex.quote(f'resume={path}')}")
    if len(paths) > MOST:
        raise ValueError(f"run: {len(paths)} runs: expected at most {MOST}, as many as the page has lines of different look")
    if len(paths) > 1:
        return _compare(paths, Path(cfg.to or PAGE))
    if cfg.to:
        raise ValueError(f"to={cfg.to}: the report of one run is in its folder: leave this out, or name several runs with run=<a>,<b>")
    return _again(cfg, paths[0])


def _again(cfg: Config, path: Path) -> int:
    stored = runs.read_config(path)
    with runs.RunFolder(path) as folder:
        summary = runs.read_json(path, runs.SUMMARY)
        complete = "mistakes" in summary
        init = None if complete else str(path / runs.BACKBONE)
        here = {"data_dir": cfg.data_dir or stored["data_dir"], "init": init, "device": cfg.device, "threads": cfg.threads}
        here |= {"precision": "fp32" if stored["precision"] == "fp32" else "auto"}  # this machine may lack bfloat16
        here |= {"compile": stored["compile"] and "auto"}  # or a compiler
        parts = build.build(Config({**cfg, **stored, **here}))
        runs.check_data(path, parts.dataset.digest)
        if not complete:  # a run of an earlier version
            found = inspection.inspect(Config({**cfg, **stored}), parts)
            found["diagnostics"] |= summary["diagnostics"]  # z's projector is not kept
            summary |= found
        left = [name for name in summary.get("unfinished", []) if name not in ("statistics", "report")]
        folder.write(runs.SUMMARY, {**summary, "unfinished": left})
        html.write(folder, parts.views, parts.dataset)
    return 0


def _compare(paths: list[Path], to: Path) -> int:
    if to.suffix.lower() != ".html":
        raise ValueError(f"to={shown(to)}: expected a file that ends in .html")
    if not to.parent.is_dir():
        raise ValueError(f"to={shown(to)}: there is no folder {shown(to.parent)}: create it first")
    if to.exists() and MARK not in to.read_text(encoding="utf-8", errors="replace")[:1000]:
        raise ValueError(f"to={shown(to)}: exists and is no page of twoviews report run=a,b: choose another file with to=")
    write_atomic(to, html.comparison(paths).encode(errors="backslashreplace"))
    print(f"comparison of {len(paths)} runs: {to}")
    return 0
