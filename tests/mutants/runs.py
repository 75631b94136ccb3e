"""Faults in what a run writes and reads: locks, checksums, checkpoints, tables."""

from mutants.mutant import Mutant

DAMAGE = "test_c5_damage_to_a_file_of_a_run_is_reported_and_named_or_harmless"

MUTANTS = [
    Mutant(
        "resume=latest takes a finished run",
        "runs/find.py",
        '(read_json(path, SUMMARY) or {"unfinished": True}).get("unfinished")',
        "read_json(path, SUMMARY)",
        "test_resume_latest_continues_the_newest_unfinished_run",
    ),
    # locks
    Mutant(
        "a locked folder is used",
        "runs/lock.py",
        'raise ValueError(f"{path}: in use by {holder}: wait for it, or start a separate run") from None',
        "return held, None",
        "test_s5_a_folder_in_use_is_refused_with_its_holder_and_free_after_sigkill",
    ),
    Mutant(
        "a lock is released too early",
        "runs/folder.py",
        "        self.identity = identity(self.path)\n        return self",
        "        self.identity = identity(self.path)\n        self._lock.release()\n        return self",
        "test_s5_a_folder_in_use_is_refused_with_its_holder_and_free_after_sigkill",
    ),
    Mutant(
        "a look at a lock keeps it",
        "runs/lock.py",
        "_acquire(path)[0].release()",
        "globals().setdefault('kept', []).append(_acquire(path))",
        "test_s5_a_check_of_the_lock_does_not_keep_a_run_from_locking",
    ),
    # checksums
    Mutant(
        "checksum of a checkpoint not verified",
        "runs/checkpoint.py",
        "if hashlib.sha256(payload).hexdigest().encode() != head[len(MAGIC) :]:",
        "if False:",
        "test_c5_damage_is_detected_and_the_previous_checkpoint_used",
    ),
    Mutant(
        "checkpoints may run code",
        "runs/checkpoint.py",
        "weights_only=True",
        "weights_only=False",
        "test_x1_code_in_a_checkpoint_is_refused_and_not_run",
    ),
    Mutant("checksum of JSON not verified", "runs/files.py", 'if "sha256" in content and (', "if False and (", DAMAGE),
    Mutant(
        "a missing checksum is accepted",
        "runs/files.py",
        'if run and "sha256" not in content:',
        "if False:",
        "test_a_checksum_covers_values_and_run_and_not_the_format",
    ),
    Mutant(
        "checksum of the configuration not verified",
        "runs/folder.py",
        "if first.startswith(CHECKSUM) and first",
        "if False and first",
        "test_c5_a_changed_configuration_is_refused",
    ),
    Mutant(
        "a configuration without its checksum is accepted",
        "runs/folder.py",
        "if not first.startswith(CHECKSUM) and (path",
        "if False and (path",
        "test_c5_a_configuration_that_lost_its_checksum_is_damaged",
    ),
    Mutant("another run's checkpoint", "runs/checkpoint.py", 'state.get("run", run) != run', "False", DAMAGE),
    Mutant("checksum of the weights not verified", "runs/weights.py", 'if "sha256" in description and', "if False and", DAMAGE),
    Mutant("another run's weights", "runs/weights.py", 'if run and description.get("run") != run:', "if False:", DAMAGE),
    Mutant(
        "a damaged checkpoint becomes the previous one",
        "runs/checkpoint.py",
        "os.replace(folder / LAST, folder / DAMAGED)",
        "pass",
        "test_c2_a_save_killed_at_any_point_leaves_a_checkpoint_that_loads",
    ),
    # files
    Mutant(
        "files written in place",
        "runs/files.py",
        'temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")',
        "temporary = path",
        "test_c2_a_save_killed_at_any_point_leaves_a_checkpoint_that_loads",
    ),
    Mutant("metrics of a torn last line kept", "runs/metrics.py", r'blob.split(b"\n")[:-1]', r'blob.split(b"\n")', "runs/test_metrics.py"),
    Mutant("evaluated on other data", "runs/folder.py", "if stored != digest:", "if False:", "test_other_data_than_the_runs_are_refused"),
    Mutant(
        "the data do not identify a run",
        "runs/folder.py",
        "if second.startswith(DATA):",
        "if False:",
        "test_c5_a_run_on_other_data_is_another_run",
    ),
    Mutant(
        "machine keys identify a run",
        "runs/folder.py",
        'science = keys("science")',
        "science = keys()",
        "test_a_run_is_identified_by_its_science_keys",
    ),
    # finding runs
    Mutant(
        "linear evaluation of any run",
        "runs/find.py",
        "if like.items() <= read_config(path).items()]",
        "if True]",
        "test_linear_evaluation_lists_existing_runs_when_none_matches",
    ),
    Mutant(
        "latest is the run that was evaluated last",
        "runs/find.py",
        "(path / BACKBONE).stat()",
        "(path / SUMMARY).stat()",
        "test_latest_is_the_run_that_was_trained_last_not_the_one_evaluated_last",
    ),
    # tables
    Mutant(
        "the seed separates groups of runs",
        "runs/tables.py",
        ' - {"seed"}',
        "",
        "config/test_schema.py::test_runs_are_grouped_over_seeds_by_their_science_keys",
    ),
    Mutant(
        "runs with other settings in one mean",
        "runs/tables.py",
        "if key in science and value is not None))",
        "if False))",
        "config/test_schema.py::test_runs_are_grouped_over_seeds_by_their_science_keys",
    ),
    Mutant(
        "machine keys separate groups of runs",
        "runs/tables.py",
        'set(keys("science"))',
        "set(keys())",
        "config/test_schema.py::test_runs_are_grouped_over_seeds_by_their_science_keys",
    ),
    Mutant(
        "a repeated seed counts twice",
        "runs/tables.py",
        '[config.get("seed")] =',
        "[len(str(out))] =",
        "test_runs_compare_counts_a_repeated_seed_once_and_takes_the_newest",
    ),
    Mutant(
        "runs on other images in one mean",
        "runs/tables.py",
        'summary.get("manifest", {}).get("data_digest")',
        "None",
        "config/test_schema.py::test_runs_are_grouped_over_seeds_by_their_science_keys",
    ),
    Mutant("probes at other rates in one mean", "runs/tables.py", " if _protocol(row) == _protocol(rows[0])]", "]", "runs/test_tables.py"),
    Mutant(
        "another data set's number in a table",
        "runs/tables.py",
        'if row["of"] == of and "on" not in row]',
        'if row["of"] == of]',
        "test_a_run_is_evaluated_on_another_data_set",
    ),
    Mutant(
        "names in the report are not escaped",
        "report/html.py",
        "autoescape=True",
        "autoescape=False",
        "test_x2_names_in_the_report_are_escaped",
    ),
]
