"""Faults in what a user sees and takes away: exports, checkpoints of others, trackers, the report."""

from mutants.mutant import Mutant

LINES = "test_the_printed_lines_give_the_same_features"
MATCHED = "test_every_weight_of_another_programs_resnet_is_matched"
CONTENTION = "test_contention.py"

MUTANTS = [
    # export
    Mutant("the printed lines do not normalise", "export/formats.py", "h = net((images - mean) / std)", "h = net(images)", LINES),
    Mutant("the printed lines keep BatchNorm in training", "export/formats.py", "\\nnet.eval()\\n'", "\\n'", LINES),
    Mutant("the printed lines keep the max-pooling", "export/formats.py", '"net.maxpool = torch.nn.Identity()\\n"', '""', LINES),
    Mutant(
        "a gray image goes to a colour stem",
        "export/formats.py",
        'if trained.channels != 3 else ""\n\n\ndef _thin',
        'if False else ""\n\n\ndef _thin',
        LINES,
    ),
    Mutant(
        "ONNX without normalisation", "export/onnx.py", "self.backbone((images - self.mean) / self.std)", "self.backbone(images)", LINES
    ),
    Mutant(
        "ONNX for one number of images",
        "export/onnx.py",
        '            dynamic_shapes={"images": {0: batch}},\n',
        "",
        "test_an_onnx_file_has_any_number_of_images_and_its_weights_inside",
    ),
    Mutant(
        "ONNX is not checked",
        "export/onnx.py",
        "    _check(content, module, images)\n",
        "",
        "test_an_onnx_file_with_other_features_is_not_written",
    ),
    Mutant(
        "a failed push is silent",
        "export/hub.py",
        '        raise ConnectionError(f"push={repository}',
        '        raise ValueError(f"{repository}',
        "test_a_push_sends_the_folder_and_a_failure_keeps_it",
    ),
    Mutant(
        "an export overwrites a folder",
        "export/write.py",
        "if folder.exists() or folder.is_symlink():",
        "if False:",
        "test_what_cannot_be_exported_is_refused_in_one_line",
    ),
    # checkpoints of other programs
    Mutant(
        "numbered layers are not understood",
        "foreign.py",
        "(_matched(own, _renamed(found, children)) for children in CHILDREN)",
        "(_matched(own, _renamed(found, {})),)",
        MATCHED,
    ),
    Mutant("the momentum encoder is taken", "foreign.py", "counts.most_common(1)[0][0]", "counts.most_common()[-1][0]", MATCHED),
    Mutant(
        "a deeper checkpoint is cut off",
        "foreign.py",
        "    if lacking or deeper:",
        "    if lacking:",
        "test_another_architecture_is_refused",
    ),
    Mutant("a checkpoint may run code", "foreign.py", "weights_only=True", "weights_only=False", "test_code_in_a_checkpoint_is_never_run"),
    # trackers
    Mutant(
        "a tracker that is down ends the run",
        "trackers/followers.py",
        "        if error is None or not isinstance(error, Exception):\n            return False\n",
        "        return False\n",
        "test_a_tracker_that_fails_stops_no_run_and_is_named_once",
    ),
    Mutant(
        "a resumed curve lacks what was written before",
        "trackers/followers.py",
        "found = rows if name in self.open else read_metrics(self.folder.path, [])",
        "found = rows",
        "test_trackers.py",
    ),
    Mutant(
        "a resumed curve has steps twice",
        "trackers/followers.py",
        '[row for row in found if row["step"] > tracker.last]',
        "found",
        "test_trackers.py",
    ),
    Mutant(
        "a run of the same name goes on in the old curve",
        "trackers/kinds.py",
        "{path.name} {read_json(path, MANIFEST).get('started')}",
        "{path.name}",
        "test_a_new_run_of_the_same_name_has_a_curve_of_its_own",
    ),
    Mutant(
        "final accuracies take the step of the next row",
        "trackers/kinds.py",
        "self.run.log(dict(results), step=max(0, self.last))",
        "self.run.log(dict(results))",
        "test_a_run_goes_on_after_its_final_accuracies",
    ),
    Mutant(
        "a tracker reports its use",
        "trackers/kinds.py",
        '    "MLFLOW_DISABLE_TELEMETRY": "true",\n',
        "",
        "test_mlflow_does_not_report_its_use",
    ),
    # beside other programs
    Mutant("a run's own work counts as that of others", "contention.py", "(busy - own)", "busy", CONTENTION),
    Mutant(
        "polite waiting is advised to a polite run",
        "contention.py",
        ' or os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"',
        "",
        CONTENTION,
    ),
    Mutant("advice at every step", "progress.py", "                self.contention = None\n", "", CONTENTION),
    Mutant(
        "the time left counts from the start",
        "progress.py",
        "                self.recent.popleft()\n",
        "                break\n",
        "test_progress.py",
    ),
    # report
    Mutant(
        "a cut run looks whole",
        "report/page.py",
        "for {tables.epochs(summary)} epochs on",
        "for {summary['epochs']} epochs on",
        "test_a_cut_run_says_so_and_what_is_left",
    ),
    Mutant(
        "accuracy on trained labels without a word",
        "report/page.py",
        'if summary["uses_labels"] and summary["train_on"] != "train":',
        "if False:",
        "test_a_supervised_run_has_no_z_and_its_curve_is_on_labels_that_were_trained_on",
    ),
    Mutant(
        "UMAP compiles itself for every report",
        "inspection.py",
        "                        function.enable_caching()",
        "                        pass",
        "test_what_umap_compiles_is_stored_and_without_a_place_for_it_there_is_a_map",
    ),
    Mutant("ties are mistakes", "inspection.py", "wrong = (votes > (", "wrong = (votes >= (", "test_a_tie_of_the_own_class_is_no_mistake"),
    Mutant(
        "large photos are stored whole",
        "report/pictures.py",
        "LARGEST, LARGEST_MAPPED = 96, 48",
        "LARGEST, LARGEST_MAPPED = 96, 224",
        "test_large_photos_fit_into_five_megabytes",
    ),
    Mutant(
        "spaces in a text of JSON are lost",
        "runs/folder.py",
        "return match[0] if match[0].startswith('\"') else",
        "return",
        "test_lists_in_texts_stay_as_they_are",
    ),
    Mutant(
        "a run that was resumed meanwhile is deleted",
        "commands/runs.py",
        "    with runs.RunFolder(path):  # nobody",
        "    if True:  # nobody",
        "test_a_run_that_was_taken_up_meanwhile_is_not_deleted",
    ),
    Mutant(
        "a chart upside down",
        "report/charts.py",
        "round(HEIGHT - BOTTOM - (y - ys[0])",
        "round(TOP + (y - ys[0])",
        "test_points_are_drawn_where_their_values_say",
    ),
    Mutant(
        "a long line loses its end",
        "report/charts.py",
        " for part in parts] + [points[-1]]",
        " for part in parts]",
        "test_a_long_line_becomes_means_and_keeps_its_last_point",
    ),
]
