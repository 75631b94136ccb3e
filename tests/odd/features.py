"""Features of odd folders: `twoviews embed` writes a complete file with all good images, or one line says why not."""

from __future__ import annotations

import numpy as np
from PIL import Image

from odd.odd import Odd

MODEL = "simclr-fashion_mnist-thin32"
WORDS = ("device=cpu", "threads=1")


def _written(odd: Odd, *words: str) -> tuple[str, list[str], np.ndarray]:
    """Return what `twoviews embed` prints, and the names and features that it writes."""
    to = odd.root / "features.npz"
    code, out, err = odd.run("embed", f"run={MODEL}", f"data_dir={odd.data}", f"to={to}", *WORDS, *words)
    assert (code, err) == (0, "")
    with np.load(to) as file:
        return out, file["names"].tolist(), file["features"]


def _refused(odd: Odd, *words: str) -> str:
    """Return the line with which `twoviews embed` refuses, which leaves no file."""
    line = odd.refused("embed", f"run={MODEL}", f"data_dir={odd.data}", f"to={odd.root / 'features.npz'}", *WORDS, *words)
    assert [path.name for path in odd.root.iterdir() if path.name not in ("photos", "cache", "runs")] == []
    return line


def every_image_below_a_folder_gets_a_row_in_the_order_of_names(odd: Odd) -> None:
    odd.images("b", "a/deep/er", "a", ".hidden", each=2)
    (odd.data / "notes.txt").write_text("text")
    out, names, features = _written(odd)
    assert names == ["a/0-000.png", "a/0-001.png", "a/deep/er/0-000.png", "a/deep/er/0-001.png", "b/0-000.png", "b/0-001.png"]
    assert len(features) == 6
    assert "ignored: 1 hidden folder" in out
    assert "1 other file (.txt)" in out


def images_of_all_sizes_and_modes_are_embedded(odd: Odd) -> None:
    for i, (mode, size) in enumerate((("L", (7, 3)), ("RGBA", (200, 100)), ("P", (1, 1)), ("CMYK", (64, 64)), ("1", (300, 20)))):
        Image.new(mode, size).save(odd.data / f"{i}.tif")
    _, names, features = _written(odd)
    assert names == [f"{i}.tif" for i in range(5)]
    assert np.isfinite(features).all()


def bad_files_are_listed_and_left_out_only_when_asked(odd: Odd) -> None:
    odd.images(".", each=2)
    (odd.data / "bad.jpg").write_text("<html>404</html>")
    assert "1 of 3 images cannot be read: bad.jpg: not an image, or of a kind that Pillow cannot read: repair" in _refused(odd)
    out, names, _ = _written(odd, "on_bad=skip")
    assert names == ["0-000.png", "0-001.png"]
    assert "bad.jpg: not an image" in out


def a_folder_without_images_is_refused(odd: Odd) -> None:
    (odd.data / "a.txt").write_text("text")
    assert "photos: contains no images (ignored: 1 other file (.txt)): expected a folder of images" in _refused(odd)


def names_that_are_no_utf_8_or_odd_are_kept_apart(odd: Odd) -> None:
    odd.images(".", each=1)
    image = (odd.data / "0-000.png").read_bytes()
    for name in ("\udce9.png", "é.png", "e\u0301.png", "a\nb.png", "a, b.png", "=1+1.png"):
        (odd.data / name).write_bytes(image)
    _, names, _ = _written(odd)
    assert sorted(names) == sorted(["0-000.png", "\\udce9.png", "é.png", "e\u0301.png", "a\nb.png", "a, b.png", "=1+1.png"])


def wide_images_are_refused_and_nothing_is_written(odd: Odd) -> None:
    Image.fromarray(np.full((9, 9), 4000, np.uint16)).save(odd.data / "a.png")
    assert "type value_range=[0,4095]" in _refused(odd)
    assert len(_written(odd, "value_range=[0,4095]")[1]) == 1


def a_file_of_the_users_is_never_overwritten(odd: Odd) -> None:
    odd.images(".", each=1)
    to = odd.root / "features.npz"
    to.write_text("mine")
    line = odd.refused("embed", f"run={MODEL}", f"data_dir={odd.data}", f"to={to}", *WORDS)
    assert "features.npz: exists already and is not overwritten: remove it, or choose another name" in line
    assert to.read_text() == "mine"


def a_circle_of_links_ends(odd: Odd) -> None:
    odd.images("a", each=2)
    (odd.data / "a/again").symlink_to(odd.data)
    assert len(_written(odd)[1]) == 2
