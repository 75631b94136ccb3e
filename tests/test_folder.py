"""`dataset=folder`: any tree of images, what becomes of odd ones, and what bad files do (D4)."""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny as small
from PIL import Image

from twoviews import runs
from twoviews.cli import main
from twoviews.data import dataset, folder

EACH, SIZE = 12, 16


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def make(root: Path, *folders: str, each: int = EACH, size: tuple[int, int] = (SIZE, SIZE)) -> Path:
    """Noise, another in every file."""
    random = np.random.default_rng(len(folders))
    for name in folders:
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            Image.fromarray(random.integers(0, 256, (*size[::-1], 3), np.uint8)).save(root / name / f"{i:03}.png")
    return root


def read(root: Path, **changes: object) -> folder.Arrays:
    return folder.read(str(root), **{"image_size": SIZE, "on_bad": "stop", **changes})  # type: ignore[arg-type]


def test_class_folders_give_the_labels_and_pixels_stay_where_the_size_is_theirs(tmp_path: Path) -> None:
    root = make(tmp_path / "tree", "cat", "b dog", "ä/deep/er", each=8)
    (root / "notes.txt").write_text("no image")
    arrays = read(root)
    assert arrays.classes == ("b dog", "cat", "ä")
    assert arrays.train_labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    paths = [path for name in ("b dog", "cat", "ä") for path in sorted((root / name).rglob("*.png"))]
    expected = np.stack([np.asarray(Image.open(path)).transpose(2, 0, 1) for path in paths])
    assert np.array_equal(arrays.train_images, expected)
    assert len(arrays.test_labels) == 0
    assert arrays.title == "tree, 16 pixels"


@pytest.mark.parametrize("other", ["test", "val"])
def test_splits_are_taken_where_there_are_folders_of_their_names(tmp_path: Path, other: str) -> None:
    arrays = read(make(tmp_path / "tree", "train/a", "train/b", f"{other}/b"))
    assert arrays.train_labels.tolist() == [0] * EACH + [1] * EACH
    assert arrays.test_labels.tolist() == [1] * EACH


def test_a_tree_without_a_test_split_gives_up_a_tenth_of_every_class(tmp_path: Path) -> None:
    make(tmp_path / "tree", "a", "b", each=30)
    data = dataset.load("folder", str(tmp_path / "tree"), image_size=SIZE)
    assert data.test_labels.bincount().tolist() == [3, 3]
    assert data.labels.bincount().tolist() == [27, 27]
    assert data.title == "tree, 16 pixels, a tenth held out as test"
    both = {bytes(x.numpy().tobytes()) for x in [*data.images, *data.test_images]}
    assert len(both) == 60, "no image in both"
    assert dataset.load("folder", str(tmp_path / "tree"), image_size=SIZE).digest == data.digest


def test_images_are_resized_once_by_their_shorter_side_and_cut_to_the_middle(tmp_path: Path) -> None:
    root = make(tmp_path / "tree", "a", "b")
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 200  # the middle third
    Image.fromarray(wide).save(root / "a/000.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(root / "b/000.png")
    arrays = read(root)
    for row in (0, EACH):
        inner = arrays.train_images[row][:, 1:-1, 1:-1]  # the resampling blends the edges
        assert (inner == 200).all()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    root = make(tmp_path / "tree", "a", "b")
    image = Image.open(root / "a/000.png").convert(mode)
    (root / "a/000.png").unlink()
    image.save(root / "a/000.tif")
    expected = np.asarray(Image.open(root / "a/000.tif").convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(read(root).train_images[0], expected)


def test_sixteen_bits_are_scaled_turned_pictures_turned_and_of_several_frames_the_first_taken(tmp_path: Path) -> None:
    root = make(tmp_path / "tree", "a", "b")
    ramp = (np.arange(SIZE * SIZE, dtype=np.uint32) * 257).astype(np.uint16).reshape(SIZE, SIZE)
    Image.fromarray(ramp).save(root / "a/000.png")
    turned = Image.fromarray(np.repeat(np.arange(SIZE, dtype=np.uint8)[:, None] * 10, SIZE, 1))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned.save(root / "a/001.png", exif=exif)
    frames = [Image.new("L", (SIZE, SIZE), value) for value in (50, 200)]
    (root / "a/002.png").unlink()
    frames[0].save(root / "a/002.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (1, 1), (9, 8, 7)).save(root / "a/003.png")
    images = read(root).train_images
    assert np.array_equal(images[0][0], np.arange(SIZE * SIZE).reshape(SIZE, SIZE))
    assert images[1][0, 0, 0] == 150
    assert images[1][0, -1, 0] == 0
    assert (images[2] == 50).all()
    assert (images[3] == np.array([9, 8, 7])[:, None, None]).all()


def png(width: int, height: int) -> bytes:
    """A file whose header promises so many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")


def good(suffix: str) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, folder.SUFFIXES[suffix])
    return buffer.getvalue()


def flipped(blob: bytes, at: int) -> bytes:
    return blob[:at] + bytes([blob[at] ^ 255]) + blob[at + 1 :]


BAD: dict[str, Callable[[Path], object]] = {
    "empty.png": lambda path: path.write_bytes(b""),
    "text.png": lambda path: path.write_text("not an image"),
    "page.jpg": lambda path: path.write_text("<html>404</html>"),
    "vector.jpg": lambda path: path.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>'),
    "cut.jpg": lambda path: path.write_bytes(good(".jpg")[:700]),
    "cut.png": lambda path: path.write_bytes(good(".png")[:3000]),
    "cut.webp": lambda path: path.write_bytes(good(".webp")[:500]),
    "head alone.png": lambda path: path.write_bytes(good(".png")[:20]),
    "chunk.png": lambda path: path.write_bytes(flipped(good(".png"), 20)),
    "pixels missing.png": lambda path: path.write_bytes(png(200, 200)),
    "bomb.png": lambda path: path.write_bytes(png(20_000, 20_000)),
    "huge.bmp": lambda path: path.write_bytes(b"BM" + bytes(16) + struct.pack("<ii", 100_000, 100_000) + bytes(60)),
    "random.webp": lambda path: path.write_bytes(np.random.default_rng(1).bytes(500)),
    "random.tiff": lambda path: path.write_bytes(b"II*\0" + np.random.default_rng(2).bytes(500)),
    "archive.png": lambda path: path.write_bytes(b"PK\3\4" + bytes(100)),
    "link.png": lambda path: path.symlink_to("nowhere.png"),
    "pipe.png": lambda path: os.mkfifo(path),
    "ünï \udce9.png": lambda path: path.write_bytes(b"a name that is no Unicode"),
}


def test_d4_every_bad_file_is_listed_before_anything_is_spent(tmp_path: Path) -> None:
    root = make(tmp_path / "tree", "a", "b")
    for name, spoil in BAD.items():
        spoil(root / "b" / name)
    with pytest.raises(ValueError, match=rf"^{len(BAD)} of {2 * EACH + len(BAD)} files are no images") as refused:
        read(root)
    said = str(refused.value)
    assert said.endswith("or leave them out with on_bad=skip")
    assert "\n" not in said
    for name in BAD:
        assert name.encode(errors="backslashreplace").decode() in said


@pytest.mark.parametrize("name", BAD)
def test_d4_a_bad_file_can_be_left_out_and_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    clean = read(make(tmp_path / "clean", "a", "b"))
    root = make(tmp_path / "tree", "a", "b")
    BAD[name](root / "b" / name)
    arrays = read(root, on_bad="skip")
    assert np.array_equal(arrays.train_images, clean.train_images)
    assert np.array_equal(arrays.train_labels, clean.train_labels)
    (skipped,) = arrays.skipped
    assert name.encode(errors="backslashreplace").decode() in skipped
    assert f"1 of {2 * EACH + 1} files are no images and left out" in capsys.readouterr().out


def test_of_very_many_bad_files_the_first_are_named_and_the_others_counted(tmp_path: Path) -> None:
    root = make(tmp_path / "tree", "a", "b")
    for i in range(33):
        (root / "a" / f"bad{i:02}.png").write_text("no")
    with pytest.raises(ValueError, match=r"33 of 57 files .*bad19\.png: .*; and 13 more"):
        read(root)


@pytest.mark.parametrize(
    ("spoil", "changes", "says"),
    [
        (lambda root: None, {"image_size": None}, "image_size= must say how many pixels"),
        (lambda root: (root / "a/000.png").rename(root / "loose.png"), {}, "loose.png and 0 more lie beside class folders"),
        (lambda root: [path.unlink() for path in (root / "a").iterdir()], {}, "holds 12 images .*expected 20 at least"),
        (lambda root: (make(root, "train/x", each=20), make(root, "test/y")), {}, "holds classes that .*train has not: y"),
    ],
)
def test_a_tree_that_does_not_fit_is_refused(
    tmp_path: Path, spoil: Callable[[Path], object], changes: dict[str, object], says: str
) -> None:
    root = make(tmp_path / "tree", "a", "b")
    spoil(root)
    with pytest.raises(ValueError, match=says):
        read(root, **changes)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    for place in (None, str(tmp_path / "nowhere")):
        with pytest.raises(ValueError, match="data_dir= must name a folder of images"):
            folder.read(place, image_size=SIZE, on_bad="stop")
    with pytest.raises(ValueError, match="image_size=16: fashion_mini has its own size"):
        dataset.load("fashion_mini", None, image_size=16)


def test_a_tree_is_decoded_once_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "tree", "a", "b")
    decoded: list[int | None] = []
    real = folder._decode
    monkeypatch.setattr(folder, "_decode", lambda paths, title, size: (decoded.append(size), real(paths, title, size))[1])
    for size in (16, 16, 24, 24, 16):
        assert read(root, image_size=size).train_images.shape == (2 * EACH, 3, size, size)
    assert decoded == [16, 24]


WORDS = ("dataset=folder", f"image_size={SIZE}", "batch_size=16", "epochs=2", "max_steps=3", "probe_every=0.5", "view_sizes=null")


def test_a_folder_is_trained_on_and_read_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path / "tree", "a", "b", each=30)
    (root / "a/bad.png").write_text("no")
    words = small.words(root, tmp_path / "runs", *WORDS, recipe="cifar_thin")
    assert main(["pretrain", *words]) == 2
    assert "1 of 61 files are no images" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert main(["pretrain", *words, "on_bad=skip"]) == 0
    path = small.only_run(tmp_path / "runs")
    (skipped,) = runs.read_json(path, runs.MANIFEST)["skipped_files"]
    assert "bad.png" in skipped
    assert {row["split"] for row in small.summary(path)["readouts"]} == {"test"}
    assert main(["evaluate", f"run={path}", "probes=linear_precomp", "device=cpu"]) == 0


def test_images_without_classes_are_trained_on_and_nothing_is_read_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path / "tree", ".", each=40)
    assert main(["pretrain", *small.words(root, tmp_path / "runs", *WORDS, recipe="cifar_thin")]) == 0
    path = small.only_run(tmp_path / "runs")
    assert small.summary(path)["readouts"] == []
    assert "there is nothing to read out" in capsys.readouterr().out
    assert (path / runs.BACKBONE).is_file()
    assert (path / runs.REPORT).is_file()
    assert all("z_spread" in row for row in runs.metrics(path))
    assert main(["runs", f"runs_dir={tmp_path / 'runs'}"]) == 0


# ---- what would go unseen ----


def test_d4_a_dead_link_that_joins_a_tree_is_found_though_the_tree_is_cached(tmp_path: Path) -> None:
    root = make(tmp_path / "tree", "a", "b")
    read(root)
    (root / "a/dead.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"dead\.png: a link to nothing"):
        read(root)


def test_d4_linked_class_folders_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", "b")
    root = make(tmp_path / "tree", "a")
    (root / "b").symlink_to(tmp_path / "elsewhere/b")
    (root / "a/round").symlink_to(root)
    arrays = read(root)
    assert arrays.classes == ("a", "b")
    assert len(arrays.train_images) == 2 * EACH


def test_d4_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "tree", "a", "b")
    real = os.scandir

    def scandir(path: Any) -> Any:  # root may read everything, so the system's answer is put in its mouth
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match=r"tree/b: cannot be read \(Permission denied\)"):
        read(root)


def test_d4_a_strip_is_cut_before_it_is_blown_up(tmp_path: Path) -> None:
    root = make(tmp_path / "tree", "a", "b")
    Image.fromarray(np.full((20_000, 1, 3), 7, np.uint8)).save(root / "a/000.png")
    image = read(root, image_size=512).train_images[0]  # 512 x 10,240,000 pixels if the shorter side came first
    assert image.shape == (3, 512, 512)
    assert (image == 7).all()


def test_two_trees_of_like_files_have_a_cache_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    digests = []
    for name, value in (("one", 1), ("two", 2)):
        for i in range(24):
            path = tmp_path / name / "a" / f"{i:03}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((SIZE, SIZE, 3), value, np.uint8)).save(path)
            os.utime(path, (1e9, 1e9))  # as an archive leaves them
        digests.append(read(tmp_path / name).digest())
    one, two = sorted((tmp_path / "cache/twoviews").iterdir())
    assert digests[0] != digests[1]
    one.write_bytes(two.read_bytes())  # a whole cache of another tree is damage
    assert [read(tmp_path / name).digest() for name in ("one", "two")] == digests


class Interrupted(list[Path]):
    """Paths, at the hundredth of which Ctrl-C is pressed."""

    def __iter__(self) -> Iterator[Path]:
        for i, path in enumerate(super().__iter__()):
            if i == 100:
                raise KeyboardInterrupt
            yield path


@pytest.mark.parametrize("where", ["between two images", "as they are handed out"])
def test_ctrl_c_waits_for_no_image_that_was_not_begun(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    def slowly(path: Path, size: int | None) -> np.ndarray:
        opened.append(path)
        time.sleep(0.02)
        return np.zeros((3, 8, 8), np.uint8)

    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "_open", slowly)
    paths: list[Path] = [tmp_path / f"{i}.png" for i in range(400)]
    if where == "between two images":
        monkeypatch.setattr(folder.Progress, "add", pressed)
    else:
        paths = Interrupted(paths)
    with pytest.raises(KeyboardInterrupt):
        folder._decode(paths, "some images", None)
    assert len(opened) < 100
