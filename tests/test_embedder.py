"""Features of own images: every form of images gives those of `load_backbone`, and scikit-learn can use the class."""

from __future__ import annotations

import importlib
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from PIL import Image
from tiny import environment, mini
from torch import Tensor

from twoviews import embedder, load_backbone, pretrained
from twoviews.data import READERS
from twoviews.embedder import Embedder, embed

COLOUR, GRAY = "simclr-blood_cells-thin32", "simclr-fashion_mnist-thin32"
N = 12


@pytest.fixture(scope="module")
def cells() -> np.ndarray:
    """Images (N, 32, 32, 3) of the bundled blood cells."""
    images = READERS["blood_cells"](None).train_images[:: 10_000 // N][:N]
    return np.ascontiguousarray(images.transpose(0, 2, 3, 1))


@pytest.fixture
def folder(tmp_path: Path, cells: np.ndarray) -> Path:
    """The same images as files below a folder, whose names are not in the order in which they were written."""
    for i in np.random.default_rng(0).permutation(N):
        path = tmp_path / f"photos/{'bca'[i // 4]}/{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(cells[i]).save(path)
    return tmp_path / "photos"


def names(folder: Path) -> list[str]:
    """Return the names of all files in a folder, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


@torch.no_grad()
def expected(images: np.ndarray, run: str | Path = COLOUR) -> Tensor:
    """Return the features of images (N, H, W, C) by `load_backbone`."""
    module = load_backbone(run)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32)) / 255
    return module((x - module.get_buffer("mean")) / module.get_buffer("std"))


def close(features: np.ndarray, wanted: Tensor) -> None:
    assert features.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(features), wanted, rtol=1e-5, atol=1e-5)


# ---- the same images in every form ----


def test_a_folder_has_one_row_for_each_image_in_the_order_of_names(folder: Path, cells: np.ndarray) -> None:
    result = Embedder(COLOUR).embed(folder)
    assert result.names == tuple(names(folder))
    close(result.features, expected(np.stack([np.asarray(Image.open(folder / name)) for name in names(folder)])))
    assert result.skipped == result.notes == ()
    given, features = embed(COLOUR, str(folder), device="cpu")
    assert given == result.names
    assert np.array_equal(features, result.features)


def test_paths_keep_their_order_and_may_be_given_in_any_sequence(folder: Path, cells: np.ndarray) -> None:
    paths = [folder / name for name in reversed(names(folder))]
    result = Embedder(COLOUR).embed(paths)
    assert result.names == tuple(map(str, paths))
    close(result.features, expected(np.stack([np.asarray(Image.open(path)) for path in paths])))
    assert np.array_equal(Embedder(COLOUR).fit_transform(iter(paths)), result.features)
    for form in (tuple(paths), iter(paths), np.array(list(map(str, paths))), np.array(paths, object)):
        assert np.array_equal(Embedder(COLOUR).transform(form), result.features)
    assert np.array_equal(Embedder(COLOUR).transform(paths[0]), Embedder(COLOUR).transform(paths[:1]))


FORMS: dict[str, Any] = {
    "N, H, W, C": lambda x: x,
    "N, C, H, W": lambda x: x.transpose(0, 3, 1, 2),
    "a tensor": lambda x: torch.from_numpy(x),
    "a tensor N, C, H, W": lambda x: torch.from_numpy(x.transpose(0, 3, 1, 2).copy()),
    "rows": lambda x: x.transpose(0, 3, 1, 2).reshape(len(x), -1),
    "floats": lambda x: x / 255,
    "float rows": lambda x: (x.transpose(0, 3, 1, 2) / 255).astype(np.float32).reshape(len(x), -1),
    "nested lists": lambda x: x.tolist() and (x / 255).tolist(),
    "a list of arrays": list,
    "a list of tensors": lambda x: [torch.from_numpy(image) for image in x],
    "images of Pillow": lambda x: [Image.fromarray(image) for image in x],
    "with opacity": lambda x: np.concatenate([x, np.full_like(x[..., :1], 255)], 3),
    "read-only": lambda x: np.frombuffer(x.tobytes(), np.uint8).reshape(x.shape),
    "Fortran order": np.asfortranarray,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_images_in_memory_gives_the_same_features(form: str, cells: np.ndarray) -> None:
    before = cells.copy()
    result = Embedder(COLOUR).embed(FORMS[form](cells))
    assert result.names is None
    close(result.features, expected(cells))
    assert np.array_equal(cells, before)


def test_gray_and_colour_become_each_other() -> None:
    gray = mini().test_images[:N, 0]
    close(Embedder(GRAY).transform(gray), expected(gray[..., None], GRAY))
    for form in (np.repeat(gray[..., None], 3, 3), gray.reshape(N, -1), gray[:, None], gray[..., None], torch.from_numpy(gray)):
        assert np.array_equal(Embedder(GRAY).transform(form), Embedder(GRAY).transform(gray))
    big = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in gray]
    close(Embedder(COLOUR).transform(gray), expected(np.repeat(np.stack(big)[..., None], 3, 3)))
    colour = np.random.default_rng(0).integers(0, 256, (N, 28, 28, 3), np.uint8)
    luma = (colour @ np.array([0.299, 0.587, 0.114])).round()[..., None]
    torch.testing.assert_close(torch.from_numpy(Embedder(GRAY).transform(colour)), expected(luma, GRAY), rtol=1e-2, atol=1e-2)


def test_images_of_different_sizes_are_cropped_and_resized_as_in_training(cells: np.ndarray) -> None:
    wide = [np.pad(image, ((0, 0), (i, i), (0, 0))) for i, image in enumerate(cells)]
    close(Embedder(COLOUR).transform(wide), expected(cells))
    close(Embedder(COLOUR).transform([Image.fromarray(image) for image in wide]), expected(cells))


def test_a_small_batch_and_many_give_the_same_rows(folder: Path, cells: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Embedder(COLOUR).transform(folder)
    rule = importlib.import_module("twoviews.probes.embed")  # by name: `twoviews.probes.embed` may be the function
    monkeypatch.setattr(rule, "LEAST", 5)
    monkeypatch.setattr(rule, "PIXELS", 1)
    np.testing.assert_allclose(Embedder(COLOUR).transform(folder), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "error"),
    [
        (np.zeros((4, 3, 5, 3), np.uint8), "4 x 3 x 5 x 3: the channels may be second or last"),
        (np.zeros((4, 5, 5, 5), np.uint8), "neither the second nor the last axis is one of channels"),
        (np.zeros((32, 32, 3), np.uint8), r"one image in colour: expected a first axis over images: images\[None\]"),
        (np.zeros((4, 10), np.uint8), "rows of 10 numbers are no square images"),
        (np.zeros(9, np.uint8), r"an array of shape 9: expected a folder, a list of paths"),
        (np.zeros((0, 8, 8), np.uint8), r"an array without elements \(0 x 8 x 8\)"),
        (np.zeros((2, 8, 8), complex), "an array of complex128: expected uint8"),
        ([], "images: none: expected a folder"),
        ("no such folder", "no such folder: no such file or folder"),
        (["a.png", 3], "image 1: expected a path, as the images before it, got int"),
        ([Image.new("L", (4, 4)), "a.png"], "image 1: expected an image of Pillow, as the images before it, got str"),
        (np.full((2, 8, 8), 200.0), r"its float images have values from 200 to 200, expected 0 to 1: type value_range=\[0,255\]"),
        (np.full((2, 8, 8), 200), r"its 32-bit images have values from 200 to 200, .*value_range=\[0,255\]"),
        (np.full((2, 8, 8), 3000, np.uint16), r"its 16-bit images .*value_range=\[0,4095\], or value_range=\[0,65535\]"),
    ],
)
def test_images_whose_meaning_is_a_guess_are_refused(images: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error) as refused:
        Embedder(COLOUR).transform(images)
    assert "\n" not in str(refused.value)


def test_a_range_of_values_scales_arrays(cells: np.ndarray) -> None:
    for form in (cells * 1.0, cells.astype(np.int64), cells.astype(np.uint16)):
        close(Embedder(COLOUR, value_range=(0, 255)).transform(form), expected(cells))
    close(Embedder(COLOUR, value_range=[-1, 1]).transform(cells / 127.5 - 1), expected(cells))  # type: ignore[arg-type]
    bits = cells > 100
    close(Embedder(COLOUR).transform(bits), expected(bits * np.uint8(255)))


# ---- bad images and warnings ----


def test_bad_files_stop_before_a_forward_pass_or_are_left_out_and_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = Embedder(COLOUR).embed(folder)
    (folder / "a/bad.jpg").write_text("no image")
    (folder / "b/cut.png").write_bytes((folder / "b/00.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"photos: 2 of {N + 2} images cannot be read: a/bad.jpg: .*; b/cut.png: .*on_bad=skip"):
        Embedder(COLOUR).transform(folder)
    result = Embedder(COLOUR, on_bad="skip").embed(folder)
    assert result.names == clean.names
    assert np.array_equal(result.features, clean.features)
    assert [line.partition(": ")[0] for line in result.skipped] == ["a/bad.jpg", "b/cut.png"]
    with pytest.raises(ValueError, match=r"1 of 1 image cannot be read: .*: expected at least one image"):
        Embedder(COLOUR, on_bad="skip").transform([folder / "a/bad.jpg"])
    with pytest.raises(ValueError, match="on_bad=keep: expected stop or skip"):
        Embedder(COLOUR, on_bad="keep").transform(folder)


def test_a_bad_image_in_memory_is_named_by_its_number(cells: np.ndarray) -> None:
    images = cells / 255
    images[3, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 12 images cannot be read: image 3: it has pixels that are NaN or infinite"):
        Embedder(COLOUR).transform(images)
    result = Embedder(COLOUR, on_bad="skip").embed(images)
    assert len(result.features) == N - 1
    assert result.skipped == ("image 3: it has pixels that are NaN or infinite",)


def test_a_sparse_matrix_and_images_that_do_not_fit_are_refused_by_fit_already() -> None:
    with pytest.raises(ValueError, match=r"a sparse matrix: expected its array: images.toarray\(\)"):
        Embedder(COLOUR).fit(scipy.sparse.csr_matrix(np.ones((2, 4))))
    with pytest.raises(ValueError, match="rows of 5 numbers"):
        Embedder(COLOUR).fit(np.zeros((2, 5)))
    with pytest.raises(ValueError, match="on_bad=no"):
        Embedder(COLOUR, on_bad="no").fit()


def test_what_is_ignored_and_warned_about_becomes_notes(folder: Path) -> None:
    (folder / "notes.txt").write_text("text")
    Image.new("RGB", (9, 9)).save(folder / "z.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0")
    Image.new("L", (9, 9)).save(folder / "y.png")
    notes = Embedder(COLOUR).embed(folder).notes
    black = "2 images: one colour everywhere (y.png, z.jpg)"
    assert notes == ("ignored: 1 other file (.txt)", black, "1 image: corrupt metadata, such as EXIF data (z.jpg)")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"contains no images \(ignored: 1 other file \(.txt\)\): expected a folder of images"):
        Embedder(COLOUR).transform(tmp_path)


def test_transparent_parts_get_the_background() -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    for background, level in (("white", 255), ("black", 0)):
        features = Embedder(COLOUR, background=background).transform(image)
        close(features, expected(np.full((1, 32, 32, 3), level, np.uint8)))


def test_images_are_read_as_in_the_training_of_the_run(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_level(level: int) -> Tensor:
        return expected(np.full((1, 28, 28, 1), level, np.uint8), finished)

    transparent = Image.new("LA", (28, 28), (0, 0))
    wide = Image.fromarray(np.full((28, 28), 400, np.uint16))  # refused unless the range is known
    close(Embedder(finished).transform(transparent), of_level(255))
    for background, level, high in (("gray", 128, 4000), ("black", 0, 800)):
        trained = {"background": background, "value_range": [0, high]}
        monkeypatch.setattr(embedder.runs, "read_config", lambda path, trained=trained: trained)
        close(Embedder(finished).transform(transparent), of_level(level))
        close(Embedder(finished).transform(wide), of_level(round(400 / high * 255)))
        close(Embedder(finished, background="white").transform(transparent), of_level(255))


# ---- which backbone ----


def test_a_run_is_found_by_its_folder_its_name_its_file_and_as_the_latest(finished: Path) -> None:
    gray = mini().test_images[:N, 0]
    for run in (finished, str(finished), finished.name, "latest", finished / "backbone.safetensors"):
        close(Embedder(run, runs_dir=finished.parent).transform(gray), expected(gray[..., None], finished))


def test_a_path_may_begin_with_the_home_folder(finished: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    whole = Embedder(COLOUR).transform(folder)
    for form in ("~/photos", Path("~/photos"), [f"~/photos/{name}" for name in names(folder)]):
        assert np.array_equal(Embedder(COLOUR).transform(form), whole)
    monkeypatch.setenv("HOME", str(finished.parent))
    for options in ({"run": f"~/{finished.name}"}, {"run": f"~/{finished.name}/backbone.safetensors"}, {"runs_dir": "~"}):
        assert Embedder(**options).fit().file_ == finished / "backbone.safetensors"


def test_what_is_no_run_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match="no such run"):
        Embedder("nosuch", runs_dir=tmp_path).transform(folder)
    with pytest.raises(ValueError, match=r"a\.safetensors: no such file"):
        Embedder(tmp_path / "a.safetensors").transform(folder)
    with pytest.raises(ValueError, match="precision=fp8: expected auto, bf16, fp32 or fp64"):
        Embedder(COLOUR, precision="fp8").transform(folder)
    with pytest.raises(ValueError, match="device=tpu: this machine has none"):
        Embedder(COLOUR, device="tpu").transform(folder)


def test_weights_of_another_run_are_refused(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    (tmp_path / "copy/backbone.safetensors").write_bytes(pretrained.BUNDLED[GRAY].read_bytes())
    with pytest.raises(ValueError, match="from another run"):
        Embedder(tmp_path / "copy").fit()


def test_a_new_file_of_weights_is_read_again(tmp_path: Path, cells: np.ndarray) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(pretrained.BUNDLED[GRAY].read_bytes())
    first = Embedder(path).transform(cells)
    path.write_bytes(pretrained.BUNDLED["supervised-fashion_mnist-thin32"].read_bytes())
    os.utime(path, (1, 1))
    assert not np.allclose(Embedder(path).transform(cells), first)


def test_other_precisions_are_near(cells: np.ndarray) -> None:
    exact = Embedder(COLOUR).transform(cells)
    np.testing.assert_allclose(Embedder(COLOUR, precision="fp64").transform(cells), exact, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(Embedder(COLOUR, precision="bf16").transform(cells), exact, rtol=0.2, atol=0.2)


def test_nothing_global_changes(folder: Path) -> None:
    def state() -> tuple[Any, ...]:
        random = (torch.random.get_rng_state().tolist(), np.random.get_state()[1].tolist())  # noqa: NPY002 - the global one
        return torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), list(warnings.filters), random

    before = state()
    Embedder(COLOUR).fit_transform(folder)
    assert state() == before


def test_the_example_prints_nearest_neighbours(tmp_path: Path, folder: Path) -> None:
    good = names(folder)
    (folder / "bad.png").write_text("no image")
    example = Path(__file__).parent.parent / "examples/own_images.py"
    done = subprocess.run(
        [sys.executable, str(example), str(folder)], env=environment(tmp_path), capture_output=True, text=True, timeout=120
    )
    lines = done.stdout.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [*good, "skipped"], done.stderr
    assert all(len(line.partition(": ")[2].split(", ")) == 3 for line in lines[:-1])
    assert len(example.read_text().splitlines()) <= 20


def test_an_embedder_is_pickled_without_its_weights_and_printed(cells: np.ndarray) -> None:
    fitted = Embedder(GRAY, background="black").fit()
    blob = pickle.dumps(fitted)
    assert len(blob) < 2000
    assert np.array_equal(pickle.loads(blob).transform(cells), fitted.transform(cells))
    assert repr(fitted) == f"Embedder(run={GRAY!r}, background='black')"
    assert repr(Embedder()) == "Embedder()"
