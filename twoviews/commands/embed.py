"""`twoviews embed run=<run> data_dir=<folder> to=<file>`: features of your own images, with the names of the files."""

import csv
import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from twoviews.config import Config
from twoviews.embedder import Embedder, Features
from twoviews.images.names import REASONS, plural, shown
from twoviews.runs.files import write_atomic


def run(cfg: Config) -> int:
    """Write the features of all images in a folder to a file, one row for each image, sorted by name."""
    to = Path(cfg.to)
    check_output(to)
    if not cfg.data_dir:
        raise ValueError("embed: expected data_dir=<folder of images>")
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    options = {key: cfg[key] for key in ("runs_dir", "background", "value_range", "on_bad", "device", "precision")}
    embedder = Embedder(cfg.run, **options).fit()
    print(f"model: {embedder.description()}")
    result = embedder.embed(cfg.data_dir)
    for line in (*result.notes, *_skipped(result)):
        print(line)
    check_output(to)  # another program may have written it in the meantime
    write_atomic(to, WRITERS[to.suffix.lower()](result, embedder.description()))
    rows, columns = result.features.shape
    print(f"{shown(to)}: {plural(rows, 'row')}, {plural(columns, 'feature')} of each image")
    return 0


def check_output(to: Path) -> None:
    """Refuse a file that cannot be written, before any work.

    Raises:
        ValueError: if it exists, has no folder or another ending, or needs a package.
    """
    suffix = to.suffix.lower()
    if suffix not in WRITERS:
        raise ValueError(f"to={shown(to)}: expected a file that ends in {', '.join(WRITERS)}")
    if to.exists() or to.is_symlink():
        raise ValueError(f"to={shown(to)}: exists already and is not overwritten: remove it, or choose another name")
    if not to.parent.is_dir():
        raise ValueError(f"to={shown(to)}: {shown(to.parent)} is no folder: create it, or choose another one")
    if suffix == ".parquet" and find_spec("pyarrow") is None:
        raise ValueError(f"to={shown(to)}: needs the package pyarrow: pip install pyarrow, or write {shown(to.with_suffix('.csv'))}")


def _skipped(result: Features) -> list[str]:
    """Return lines that list the images that were left out."""
    if not result.skipped:
        return []
    more = len(result.skipped) - REASONS
    lines = [f"{plural(len(result.skipped), 'image')} cannot be read and left out:", *(f"  {line}" for line in result.skipped[:REASONS])]
    return lines + [f"  and {more} more"] * (more > 0)


def _names(result: Features) -> list[str]:
    """Return the names of the files; bytes that are no UTF-8 become escapes such as \\udcff."""
    return [name.encode(errors="backslashreplace").decode() for name in result.names or ()]


def _columns(result: Features) -> list[str]:
    return [f"h{i}" for i in range(result.features.shape[1])]


def _npz(result: Features, model: str) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, names=np.array(_names(result)), features=result.features, model=np.array(model))
    return buffer.getvalue()


def _csv(result: Features, model: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *_columns(result)])
    for name, row in zip(_names(result), result.features.tolist(), strict=True):
        writer.writerow([name, *(f"{value:.9g}" for value in row)])  # nine digits give back the same float32
    return text.getvalue().encode()


def _parquet(result: Features, model: str) -> bytes:
    import pyarrow
    from pyarrow import parquet

    columns = {"name": pyarrow.array(_names(result))}
    columns |= {name: pyarrow.array(column) for name, column in zip(_columns(result), np.ascontiguousarray(result.features.T), strict=True)}
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns).replace_schema_metadata({"model": model}), buffer)
    return buffer.getvalue()


WRITERS = {".npz": _npz, ".csv": _csv, ".parquet": _parquet}
