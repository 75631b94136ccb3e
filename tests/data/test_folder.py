"""`dataset=folder`: any folder of images, unusual images, and bad files (D4)."""

from __future__ import annotations

import io
import os
import signal
import struct
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny as small
from image_files import write_tree
from PIL import Image

from twoviews import runs
from twoviews.cli import main
from twoviews.data import dataset, folder
from twoviews.data.arrays import Arrays
from twoviews.images import decoding, pixels

EACH, SIZE = 12, 16  # images per folder of `write_tree`, and their size
OPTIONS = folder.Options(image_size=SIZE)
pytestmark = pytest.mark.usefixtures("own_cache")


def read(root: Path, **changes: Any) -> Arrays:
    return folder.read(str(root), folder.Options(**{"image_size": SIZE, **changes}))


def test_class_folders_give_the_labels_and_images_of_the_right_size_keep_their_pixels(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", "cat", "b dog", "ä/deep/er", each=8)
    (root / "notes.txt").write_text("not an image")
    arrays = read(root)
    assert arrays.classes == ("b dog", "cat", "ä")
    assert arrays.train_labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    paths = [path for name in ("b dog", "cat", "ä") for path in sorted((root / name).rglob("*.png"))]
    expected = np.stack([np.asarray(Image.open(path)).transpose(2, 0, 1) for path in paths])
    assert np.array_equal(arrays.train_images, expected)
    assert len(arrays.test_labels) == 0
    assert arrays.title == "tree, 16 pixels"


@pytest.mark.parametrize("other", ["test", "val"])
def test_folders_named_train_and_test_or_val_are_the_splits(tmp_path: Path, other: str) -> None:
    arrays = read(write_tree(tmp_path / "tree", "train/a", "train/b", f"{other}/b"))
    assert arrays.train_labels.tolist() == [0] * EACH + [1] * EACH
    assert arrays.test_labels.tolist() == [1] * EACH


def test_without_a_test_split_a_tenth_of_every_class_becomes_one(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree", "a", "b", each=30)
    data = dataset.load("folder", str(tmp_path / "tree"), options=OPTIONS)
    assert data.test_labels.bincount().tolist() == [3, 3]
    assert data.labels.bincount().tolist() == [27, 27]
    assert data.title == "tree, 16 pixels, a tenth held out as test"
    both = {bytes(x.numpy().tobytes()) for x in [*data.images, *data.test_images]}
    assert len(both) == 60, "an image is in both splits"
    assert dataset.load("folder", str(tmp_path / "tree"), options=OPTIONS).digest == data.digest


# ---- what becomes of an image ----


def test_images_are_resized_by_their_shorter_side_and_cropped_to_the_centre(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", "a", "b")
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 200  # the middle third
    Image.fromarray(wide).save(root / "a/000.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(root / "b/000.png")
    arrays = read(root)
    for row in (0, EACH):
        inner = arrays.train_images[row][:, 1:-1, 1:-1]  # resampling blends the edges
        assert (inner == 200).all()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    root = write_tree(tmp_path / "tree", "a", "b")
    image = Image.open(root / "a/000.png").convert(mode)
    (root / "a/000.png").unlink()
    image.save(root / "a/000.tif")
    expected = np.asarray(Image.open(root / "a/000.tif").convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(read(root).train_images[0], expected)


def test_16_bits_are_scaled_exif_rotates_and_the_first_frame_is_used(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", "a", "b")
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


def test_d4_a_long_strip_is_cropped_before_it_is_resized(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", "a", "b", each=10)
    Image.fromarray(np.full((20_000, 1, 3), 7, np.uint8)).save(root / "a/000.png")
    image = read(root, image_size=512).train_images[0]  # resized first, it would have 512 x 10,240,000 pixels
    assert image.shape == (3, 512, 512)
    assert (image == 7).all()


# ---- bad files ----


def png(width: int, height: int) -> bytes:
    """Return a file whose header states this size, without the pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")


def good(suffix: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, {".jpg": "JPEG"}.get(suffix, suffix[1:]))
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
    "ünï \udce9.png": lambda path: path.write_bytes(b"a name that is not Unicode"),
}


def test_d4_every_bad_file_is_listed(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", "a", "b")
    for name, write in BAD.items():
        write(root / "b" / name)
    with pytest.raises(ValueError, match=rf"^{len(BAD)} of {2 * EACH + len(BAD)} files cannot be read as images") as refused:
        read(root)
    text = str(refused.value)
    assert text.endswith("or leave them out with on_bad=skip")
    assert "\n" not in text
    for name in BAD:
        assert name.encode(errors="backslashreplace").decode() in text


@pytest.mark.parametrize("name", BAD)
def test_d4_a_bad_file_can_be_left_out_and_is_recorded(tmp_path: Path, name: str) -> None:
    clean = read(write_tree(tmp_path / "clean", "a", "b"))
    root = write_tree(tmp_path / "tree", "a", "b")
    BAD[name](root / "b" / name)
    arrays = read(root, on_bad="skip")
    assert np.array_equal(arrays.train_images, clean.train_images)
    assert np.array_equal(arrays.train_labels, clean.train_labels)
    (skipped,) = arrays.skipped
    assert name.encode(errors="backslashreplace").decode() in skipped
    assert any(line.startswith(f"left out: 1 of {2 * EACH + 1} files cannot be read as images: b/") for line in arrays.description)


def test_of_many_bad_files_the_first_are_named_and_the_others_counted(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", "a", "b")
    for i in range(33):
        (root / "a" / f"bad{i:02}.png").write_text("no")
    with pytest.raises(ValueError, match=r"33 of 57 files .*bad19\.png: .*; and 13 more"):
        read(root)


@pytest.mark.parametrize(
    ("change", "options", "error"),
    [
        (lambda root: None, {"image_size": None}, "expected image_size=<width and height in pixels>"),
        (lambda root: (root / "a/000.png").rename(root / "loose.png"), {}, "loose.png and 0 more are outside the class folders"),
        (lambda root: [path.unlink() for path in (root / "a").iterdir()], {}, "contains 12 training images: expected at least 20"),
        (lambda root: (write_tree(root, "train/x", each=20), write_tree(root, "test/y", "test/z")), {}, "classes that train lacks: y, z"),
    ],
)
def test_a_tree_that_does_not_fit_is_refused(
    tmp_path: Path, change: Callable[[Path], object], options: dict[str, object], error: str
) -> None:
    root = write_tree(tmp_path / "tree", "a", "b")
    change(root)
    with pytest.raises(ValueError, match=error):
        read(root, **options)


def test_a_missing_folder_and_a_size_for_other_data_are_refused(tmp_path: Path) -> None:
    for place in (None, str(tmp_path / "nowhere")):
        with pytest.raises(ValueError, match="expected data_dir=<folder of images>, got"):
            folder.read(place, OPTIONS)
    with pytest.raises(ValueError, match="image_size=16: the images of fashion_mini have a fixed size"):
        dataset.load("fashion_mini", None, options=OPTIONS)
    with pytest.raises(ValueError, match="layout=classes: fashion_mini does not use it: leave it out"):
        dataset.load("fashion_mini", None, options=folder.Options(layout="classes"))


def test_d4_linked_class_folders_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    write_tree(tmp_path / "elsewhere", "b")
    root = write_tree(tmp_path / "tree", "a")
    (root / "b").symlink_to(tmp_path / "elsewhere/b")
    (root / "a/round").symlink_to(root)
    arrays = read(root)
    assert arrays.classes == ("a", "b")
    assert len(arrays.train_images) == 2 * EACH


def test_d4_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(tmp_path / "tree", "a", "b")
    real = os.scandir

    def scandir(path: Any) -> Any:  # the user root could read the folder, so the error is simulated
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match=r"tree/b: cannot be read \(Permission denied\)"):
        read(root)


@pytest.mark.parametrize("where", ["between two images", "while work is handed out"])
def test_ctrl_c_does_not_wait_for_images_that_were_not_started(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    def slowly(path: Path, reading: pixels.Reading) -> pixels.Decoded:
        opened.append(path)
        time.sleep(0.02)
        return pixels.Decoded(np.zeros((3, 8, 8), np.uint8))

    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pixels, "decode", slowly)
    if where == "between two images":
        monkeypatch.setattr(decoding.Progress, "add", pressed)
    else:
        submit, calls = ThreadPoolExecutor.submit, iter(range(100))

        def submit_some(pool: ThreadPoolExecutor, *work: Any) -> Any:
            return submit(pool, *work) if next(calls, None) is not None else pressed()

        monkeypatch.setattr(ThreadPoolExecutor, "submit", submit_some)
    with pytest.raises(KeyboardInterrupt):
        decoding._decode([tmp_path / f"{i}.png" for i in range(400)], "some images", pixels.Reading(size=None))
    assert len(opened) < 100


def test_a_first_ctrl_c_waits_for_the_next_image_and_a_second_one_does_not() -> None:
    def press_twice() -> None:
        with decoding.delayed_interrupt() as raise_if_interrupted:
            raise_if_interrupted()
            signal.raise_signal(signal.SIGINT)
            for raises in (raise_if_interrupted, lambda: signal.raise_signal(signal.SIGINT)):
                with pytest.raises(KeyboardInterrupt):
                    raises()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started the tests with it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            press_twice()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


WORDS = ("dataset=folder", f"image_size={SIZE}", "batch_size=16", "epochs=2", "max_steps=3", "probe_every=0.5", "view_sizes=null")


@pytest.mark.usefixtures("fast")
def test_a_folder_is_trained_on_and_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_tree(tmp_path / "tree", "a", "b", each=30)
    (root / "a/bad.png").write_text("not an image")
    words = small.words(root, tmp_path / "runs", *WORDS, recipe="cifar_thin")
    assert main(["pretrain", *words]) == 2
    assert "1 of 61 files cannot be read as images" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert main(["pretrain", *words, "on_bad=skip"]) == 0
    path = small.only_run(tmp_path / "runs")
    (skipped,) = small.read_json(path, runs.MANIFEST)["skipped_files"]
    assert "bad.png" in skipped
    assert {row["split"] for row in small.summary(path)["evaluations"]} == {"test"}
    assert main(["evaluate", f"run={path}", "probes=linear_precomp", "device=cpu"]) == 0


def test_images_without_classes_are_trained_on_and_not_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_tree(tmp_path / "tree", ".", each=40)
    assert main(["pretrain", *small.words(root, tmp_path / "runs", *WORDS, recipe="cifar_thin")]) == 0
    path = small.only_run(tmp_path / "runs")
    assert small.summary(path)["evaluations"] == []
    assert "no classes, so there are no accuracies" in capsys.readouterr().out
    assert (path / runs.BACKBONE).is_file()
    assert (path / runs.REPORT).is_file()
    assert all("z_spread" in row for row in runs.read_metrics(path))
    assert main(["runs", f"runs_dir={tmp_path / 'runs'}"]) == 0
