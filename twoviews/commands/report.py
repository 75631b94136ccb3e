"""`twoviews report`: write a finished run's report.html again."""

from pathlib import Path

from twoviews import build, runs
from twoviews.config import Config
from twoviews.report import html


def run(cfg: Config) -> int:
    """Write the report of a finished run."""
    path = runs.find(cfg.run, Path(cfg.runs_dir))
    if not (path / runs.SUMMARY).is_file():
        raise ValueError(f"run={path}: not finished: to finish it: twoviews pretrain resume={path}")
    stored = runs.read_config(path)
    with runs.RunFolder(path) as folder:
        here = {"data_dir": cfg.data_dir or stored["data_dir"], "init": None, "device": cfg.device, "threads": cfg.threads}
        parts = build.build(Config({**cfg, **stored, **here}))
        runs.check_data(path, parts.dataset.digest)
        html.write(folder, parts.views, parts.dataset)
    return 0
