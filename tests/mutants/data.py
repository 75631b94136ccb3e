"""Faults in reading, downloading and splitting data."""

from mutants.mutant import Mutant

MUTANTS = [
    Mutant("bundled images are transposed", "data/cells.py", "transpose(0, 2, 4, 1, 3)", "transpose(0, 2, 4, 3, 1)", "data/test_cells.py"),
    # splits and batches
    Mutant("val stays in train", "data/dataset.py", "rest[self.val_rows] = False", "rest[self.val_rows] = True", "data/test_dataset.py"),
    Mutant(
        "batches of every epoch in one order",
        "data/dataset.py",
        "= permutation(seed, epoch, n)",
        "= permutation(seed, 0, n)",
        "data/test_dataset.py",
    ),
    Mutant(
        "labels of test images trained on",
        "data/dataset.py",
        "torch.cat([self.labels, torch.full_like(self.test_labels, -1)])",
        "torch.cat([self.labels, self.test_labels])",
        "data/test_dataset.py",
    ),
    Mutant(
        "held-out images are trained on",
        "data/dataset.py",
        "rest = _with_train(arrays, np.setdiff1d(np.arange(total), rows))",
        "rest = arrays",
        "test_without_a_test_split_a_tenth_of_every_class_becomes_one",
    ),
    Mutant(
        "short batch dropped though kept",
        "data/dataset.py",
        "return n // batch_size if drop_last else -(-n // batch_size)",
        "return n // batch_size",
        "data/test_dataset.py",
    ),
    Mutant(
        "the first images in place of a stratified part",
        "data/dataset.py",
        "rows = stratified(arrays.train_labels, train_size, seed=2)",
        "rows = np.arange(train_size)",
        "data/test_dataset.py",
    ),
    Mutant(
        "mean and deviation of the test images too",
        "data/dataset.py",
        "_moments(arrays.train_images, unlabelled)",
        "_moments(arrays.train_images, arrays.test_images)",
        "data/test_dataset.py",
    ),
    # folders
    Mutant(
        "bad images left out unasked",
        "data/folder.py",
        'if decoded.bad and options.on_bad == "stop":',
        "if False:",
        "test_d4_every_bad_file_is_listed",
    ),
    Mutant(
        "a damaged cache of images is used",
        "images/cache.py",
        "if _digest(key, header, images) == digest:",
        "if digest:",
        "data/test_folder_cache.py",
    ),
    Mutant("a changed image is read from the cache", "images/decoding.py", r"\0{stat.st_mtime_ns}", "", "data/test_folder_cache.py"),
    Mutant(
        "images read in another way come from the cache",
        "images/decoding.py",
        r"\0{reading}",
        r"\0{reading.size}",
        "test_images_that_are_read_in_another_way_are_decoded_again",
    ),
    Mutant("hidden folders are classes", "images/names.py", 'name.startswith(".") or ', "", "test_hidden_and_system_names_are_ignored"),
    Mutant("splits only in lower case", "images/names.py", "name.strip().casefold()", "name.strip()", "images/test_layout.py"),
    Mutant(
        "an ambiguous folder is read as splits",
        "images/layout.py",
        'if "train" in splits and (len(splits) > 1 or not others):',
        'if "train" in splits:',
        "test_odd_inputs.py::test_odd_input[a_class_called_train_is_refused_with_both_readings]",
    ),
    Mutant(
        "a folder is read twice through a link",
        "images/scan.py",
        "        seen.add(real)\n",
        "",
        "test_odd_inputs.py::test_odd_input[a_folder_is_not_read_twice_through_a_link]",
    ),
    Mutant(
        "classes without a test image",
        "data/dataset.py",
        "take = np.clip(take, counts > 1, counts - 1)",
        "pass",
        "test_stratified_can_take_one_of_each_class_and_never_all_of_one",
    ),
    Mutant(
        "labels invented for unlabelled images",
        "data/dataset.py",
        "labels.new_full((len(self.unlabelled_images),), -1)",
        "labels.new_full((len(self.unlabelled_images),), 0)",
        "test_unlabelled_images_train_and_are_in_no_split",
    ),
    # archives
    Mutant("the archive's hash not checked", "data/cifar.py", "if sha256 != source.sha256:", "if False:", "data/test_cifar.py"),
    Mutant("a changed file in the folder", "data/cifar.py", "if md5 != source.files[name]:", "if False:", "data/test_cifar.py"),
    Mutant(
        "links in an archive are followed",
        "data/cifar.py",
        " or member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE)",
        "",
        "data/test_cifar.py",
    ),
    Mutant("a member of an archive twice", "data/cifar.py", "if wanted[member.name] in blobs:", "if False:", "data/test_cifar.py"),
    Mutant("an archive unpacked without a bound", "data/cifar.py", "if self.left < 0:", "if False:", "data/test_cifar.py"),
    Mutant(
        "pickles may name anything",
        "data/pickles.py",
        "            return ALLOWED[module, name]\n",
        "            return super().find_class(module, name)\n",
        "data/test_pickles.py",
    ),
    # downloads
    Mutant("the hash of a download not checked", "data/download.py", "if digest(part) == sha256:", "if True:", "data/test_download.py"),
    Mutant("a download always starts again", "data/download.py", '"ab" if resumed else "wb"', '"wb"', "data/test_download.py"),
    Mutant(
        "an answer for another position is appended",
        "data/download.py",
        ' and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")',
        "",
        "data/test_download.py",
    ),
]
