"""CIFAR's archives, folders and image trees: good ones are read exactly, and all others are refused in one line."""

from __future__ import annotations

import gzip
import re
import shutil
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cifar_files import (
    EACH,
    Files,
    Member,
    make_files,
    make_members,
    plain_member,
    python2_pickle,
    with_hash,
    with_md5,
    write_archive,
    write_folder,
)
from image_files import write_cifar_tree
from PIL import Image

from twoviews.data import cifar, dataset, pickles
from twoviews.data.arrays import OWN_IMAGES

Made = tuple[Files, dict[str, np.ndarray]]


@pytest.mark.parametrize("source", [cifar.CIFAR10, cifar.CIFAR100], ids=lambda source: source.key)
def test_every_image_and_label_of_a_good_archive_and_of_its_folder_is_read(tmp_path: Path, source: cifar.Source) -> None:
    files, expected = make_files(source)
    path = write_archive(tmp_path / source.archive, make_members(source, files))
    folder = write_folder(tmp_path / source.folder, files)
    source = with_md5(with_hash(source, path), files)
    for arrays in (cifar.from_archive(source, path), cifar.from_folder(source, folder)):
        assert arrays.title == source.title
        assert len(arrays.classes) == source.classes
        for key, value in expected.items():
            assert np.array_equal(getattr(arrays, key), value), key
        assert len(arrays.train_images) + len(arrays.test_images) == EACH * (len(source.train) + 1)


def test_class_names_are_those_of_the_archive(tmp_path: Path, cifar10: Made) -> None:
    path = write_archive(tmp_path / "a.tar.gz", make_members(cifar.CIFAR10, cifar10[0]))
    assert cifar.from_archive(with_hash(cifar.CIFAR10, path), path).classes == cifar.CLASSES


def test_data_dir_may_be_the_archive_its_folder_or_a_folder_that_contains_one_of_them(
    tmp_path: Path, cifar10: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = cifar.CIFAR10
    path = write_archive(tmp_path / source.archive, make_members(source, cifar10[0]))
    folder = write_folder(tmp_path / "extracted" / source.folder, cifar10[0])
    monkeypatch.setattr(cifar, "CIFAR10", with_md5(with_hash(source, path), cifar10[0]))
    digests = {cifar.read(str(place)).digest() for place in (path, tmp_path, folder, folder.parent)}
    assert len(digests) == 1
    monkeypatch.chdir(tmp_path)
    folder.parent.rename(tmp_path / "data")
    assert cifar.read(None).digest() in digests  # where torchvision puts it
    data = dataset.load("cifar10", str(path))
    assert data.title == "CIFAR-10"
    assert len(data.val_rows) == EACH * 5 // 10


# ---- archives that differ from the published one ----


def test_d1_the_message_about_a_wrong_archive_says_what_it_is(tmp_path: Path, cifar10: Made) -> None:
    path = write_archive(tmp_path / "whole.tar.gz", make_members(cifar.CIFAR10, cifar10[0]))
    source, blob = with_hash(cifar.CIFAR10, path), path.read_bytes()
    flipped = bytearray(blob)
    flipped[len(blob) // 2] ^= 1
    cases = {"cut": blob[: len(blob) // 2], "flipped": bytes(flipped), "empty": b"", "page": b"<!doctype html>\n<HTML><body>log in</body>"}
    for name, content in cases.items():
        wrong = tmp_path / name
        wrong.write_bytes(content)
        with pytest.raises(ValueError, match="is not the published archive") as refused:
            cifar.from_archive(source, wrong)
        text = str(refused.value)
        assert "\n" not in text
        assert str(wrong) in text
        assert "download it again" in text
        assert ("a web page" in text) == (name == "page")


FIRST = f"{cifar.CIFAR10.folder}/data_batch_1"


def link(kind: bytes) -> Member:
    """A member that is not a regular file, in place of the first batch."""
    info = tarfile.TarInfo(FIRST)
    info.type, info.linkname = kind, "/etc/passwd"
    return info, b""


def replace_first(member: Member) -> Callable[[list[Member]], list[Member]]:
    return lambda members: [member, *(other for other in members if other[0].name != FIRST)]


# A change of a good archive, and the error; without an error, the archive is read as usual.
ODD: dict[str, tuple[Callable[[list[Member]], list[Member]], str]] = {
    "a member above the folder": (lambda members: [plain_member("../evil"), *members], ""),
    "an absolute member": (lambda members: [plain_member("/twoviews-evil"), *members], ""),
    "a member whose name ends like a batch": (lambda members: [plain_member(f"../{FIRST}"), *members], ""),
    "a symlink in place of a batch": (replace_first(link(tarfile.SYMTYPE)), "lacks data_batch_1"),
    "a hard link in place of a batch": (replace_first(link(tarfile.LNKTYPE)), "lacks data_batch_1"),
    "a device in place of a batch": (replace_first(link(tarfile.CHRTYPE)), "lacks data_batch_1"),
    "a batch twice": (lambda members: [*members, members[1]], "twice"),
    "a batch missing": (lambda members: members[:2] + members[3:], "lacks data_batch_2"),
    "no class names": (lambda members: members[:-1], "lacks batches.meta"),
    "thousands of members": (lambda members: [plain_member(f"{i}") for i in range(3000)] + members, ""),
    "a sparse file in place of a batch": (replace_first(link(tarfile.GNUTYPE_SPARSE)), "lacks data_batch_1|is damaged"),
    "an empty batch": (replace_first(plain_member(FIRST, b"")), "data_batch_1: not a batch"),
}


@pytest.mark.parametrize("case", ODD)
def test_d1_odd_members_of_an_archive_with_the_published_hash_are_refused_or_ignored(
    tmp_path: Path, cifar10: Made, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # where a reader that extracts would write
    change, error = ODD[case]
    path = write_archive(tmp_path / "odd.tar.gz", change(make_members(cifar.CIFAR10, cifar10[0])))
    before = sorted(tmp_path.parent.rglob("*"))
    if error:
        with pytest.raises(ValueError, match=error) as refused:
            cifar.from_archive(with_hash(cifar.CIFAR10, path), path)
        assert "\n" not in str(refused.value)
    else:
        arrays = cifar.from_archive(with_hash(cifar.CIFAR10, path), path)
        assert np.array_equal(arrays.train_images, cifar10[1]["train_images"])
    assert sorted(tmp_path.parent.rglob("*")) == before, "reading wrote a file"
    assert not Path("/twoviews-evil").exists()


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_d1_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: bytes) -> None:
    monkeypatch.setattr(cifar, "UNPACKED", 3_000_000)
    path = tmp_path / "bomb.tar.gz"
    info = tarfile.TarInfo(FIRST)
    info.size, info.type = 20_000_000_000, kind
    with gzip.open(path, "wb", compresslevel=1) as packed:
        packed.write(info.tobuf(tarfile.GNU_FORMAT))
        packed.write(bytes(6_000_000))
    with pytest.raises(ValueError, match="unpacks to more than 3 MB"):
        cifar.from_archive(with_hash(cifar.CIFAR10, path), path)


def test_d1_archives_that_are_cut_or_damaged_inside_are_refused(tmp_path: Path, cifar10: Made) -> None:
    whole = write_archive(tmp_path / "whole.tar.gz", make_members(cifar.CIFAR10, cifar10[0])).read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 3 : len(whole) // 3 + 1000] = bytes(1000)
    for name, blob in {"cut": whole[: len(whole) * 2 // 3], "damaged": bytes(damaged), "text": b"no archive at all"}.items():
        path = tmp_path / name
        path.write_bytes(blob)
        with pytest.raises(ValueError, match=r"is damaged|lacks") as refused:
            cifar.from_archive(with_hash(cifar.CIFAR10, path), path)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({b"data": [1, 2, 3]}, "expected pixels as uint8"),
        ({b"data": np.zeros((EACH, 3071), np.uint8)}, "expected pixels as uint8"),
        ({b"data": np.zeros((0, 3072), np.uint8)}, "expected pixels as uint8"),
        ({b"data": np.zeros((EACH, 3072), np.int64)}, "expected an array of bytes"),
        ({b"labels": [0] * (EACH - 1)}, f"expected {EACH} labels from 0 to 9"),
        ({b"labels": [0.5] * EACH}, f"expected {EACH} labels"),
        ({b"labels": [10] * EACH}, f"expected {EACH} labels"),
        ({b"labels": [-1] * EACH}, f"expected {EACH} labels"),
        ({b"labels": [2**70] * EACH}, f"expected {EACH} labels"),
    ],
)
def test_d1_batches_of_another_form_are_refused(tmp_path: Path, cifar10: Made, change: dict[bytes, Any], error: str) -> None:
    batch = pickles.load(cifar10[0]["data_batch_3"], "data_batch_3") | change
    path = write_archive(tmp_path / "a.tar.gz", make_members(cifar.CIFAR10, {**cifar10[0], "data_batch_3": python2_pickle(batch)}))
    with pytest.raises(ValueError, match=error):
        cifar.from_archive(with_hash(cifar.CIFAR10, path), path)


def test_d1_a_folder_with_a_changed_or_missing_file_is_refused(tmp_path: Path, cifar10: Made) -> None:
    write_folder(tmp_path, cifar10[0])
    source = with_md5(cifar.CIFAR10, cifar10[0])
    (tmp_path / "data_batch_4").write_bytes(cifar10[0]["data_batch_5"])
    with pytest.raises(ValueError, match=r"data_batch_4 is not the published file"):
        cifar.from_folder(source, tmp_path)
    (tmp_path / "data_batch_4").unlink()
    with pytest.raises(ValueError, match=r"data_batch_4: No such file"):
        cifar.from_folder(source, tmp_path)


def test_a_broken_archive_in_data_is_named_and_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "data" / cifar.CIFAR10.archive
    path.parent.mkdir()
    path.write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"is not the published archive .*; it is in data/, .* delete it there to download cifar10"):
        cifar.read(None)
    assert path.read_bytes() == b"cut short"


def test_d2_without_a_network_one_line_says_what_to_do(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: object, **more: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    for read, source in ((cifar.read, cifar.CIFAR10), (cifar.read100, cifar.CIFAR100)):
        with pytest.raises(ValueError, match=f"{source.title}: could not be downloaded") as refused:
            read(None)
        text = str(refused.value)
        assert all(url in text for url in source.urls)
        assert f"download {source.archive} on another machine and give data_dir=<that file>" in text
        assert "\n" not in text


# ---- image trees ----


def test_a_tree_of_png_files_is_cifar10_pixel_for_pixel(tmp_path: Path, decodings: list[Any]) -> None:
    expected = write_cifar_tree(tmp_path / "tree")
    (tmp_path / "tree/train/cat/.hidden.png").write_text("not an image")
    (tmp_path / "tree/train/cat/notes.txt").write_text("not an image")
    arrays = cifar.read(str(tmp_path / "tree"))
    assert arrays.title == "CIFAR-10"
    assert arrays.classes == cifar.CLASSES
    assert np.array_equal(np.concatenate([arrays.train_images, arrays.test_images]), expected)
    assert arrays.train_labels.tolist() == [c for c in range(10) for _ in range(3)]
    assert arrays.test_labels.tolist() == [c for c in range(10) for _ in range(2)]
    assert decodings == [(50, None)]


def test_the_title_of_a_lossy_tree_says_that_it_is_a_copy(tmp_path: Path, own_cache: Path) -> None:
    write_cifar_tree(tmp_path / "jpg", ".jpg")
    assert cifar.read(str(tmp_path / "jpg")).title == "CIFAR-10 (JPEG copy)"
    write_cifar_tree(tmp_path / "mixed")
    one = tmp_path / "mixed/test/dog/0001.png"
    Image.open(one).save(one.with_suffix(".JPEG"), format="JPEG")
    one.unlink()
    assert cifar.read(str(tmp_path / "mixed")).title == "CIFAR-10 (JPEG copy)"


def test_trees_of_another_form_are_refused(tmp_path: Path, own_cache: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, error in (("none", "got no such file or folder"), ("empty", f"got none of them; .*; {re.escape(OWN_IMAGES)}$")):
        with pytest.raises(ValueError, match=error):
            cifar.read(str(tmp_path / name))
    write_cifar_tree(tmp_path / "other", classes=("a", "b"))
    with pytest.raises(ValueError, match=rf"contains 2 classes .*: expected CIFAR-10's 10 classes .*; {re.escape(OWN_IMAGES)}$"):
        cifar.read(str(tmp_path / "other"))
    write_cifar_tree(tmp_path / "names", classes=tuple("abcdefghij"))
    with pytest.raises(ValueError, match=r"contains 10 classes of .*: expected CIFAR-10's 10 classes"):
        cifar.read(str(tmp_path / "names"))
    shutil.rmtree(tmp_path / "other/test/b")
    with pytest.raises(ValueError, match="must contain the same class folders"):
        cifar.read(str(tmp_path / "other"))
    (tmp_path / "other/test/b").mkdir()
    shutil.rmtree(tmp_path / "other/test/a")
    (tmp_path / "other/test/a").mkdir()
    with pytest.raises(ValueError, match="no images"):
        cifar.read(str(tmp_path / "other"))


def test_all_bad_files_of_a_tree_are_listed(tmp_path: Path, own_cache: Path) -> None:
    root = tmp_path / "tree"
    write_cifar_tree(root)
    good = (root / "train/cat/0000.png").read_bytes()
    bad = {
        root / "train/bird/0000.png": b"",
        root / "train/cat/0000.png": good[: len(good) // 2],
        root / "train/deer/0001.png": b"<html>not found</html>",
        root / "test/ship/0001.png": b"GIF89a" + bytes(40),
    }
    for path, blob in bad.items():
        path.write_bytes(blob)
    Image.new("RGB", (31, 32)).save(root / "test/truck/0000.png")
    with pytest.raises(ValueError, match="5 of 50 files cannot be read as images of one size") as refused:
        cifar.read(str(root))
    for path in [*bad, root / "test/truck/0000.png"]:
        assert str(path) in str(refused.value)
    assert "31 x 32 pixels, the first image has 32 x 32" in str(refused.value)
    with pytest.raises(ValueError, match="5 of 50 files cannot be read as images of one size"):
        cifar.read(str(root))  # from the cache, which remembers the reasons


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA"])
def test_images_of_other_modes_become_rgb(tmp_path: Path, own_cache: Path, mode: str) -> None:
    write_cifar_tree(tmp_path / "tree")
    other = Image.open(tmp_path / "tree/train/cat/0000.png").convert(mode)
    other.save(tmp_path / "tree/train/cat/0000.png")
    arrays = cifar.read(str(tmp_path / "tree"))
    assert np.array_equal(arrays.train_images[3 * 3].transpose(1, 2, 0), np.asarray(other.convert("RGB")))
