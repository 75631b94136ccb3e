"""Faults in the Python interface, in sweeps, and in what is printed."""

from mutants.mutant import Mutant

GUEST = "test_pretrain_changes_nothing_in_the_program_that_calls_it"
OWN = "test_odd_input[a_run_on_own_data_stops_resumes_and_is_evaluated_with_the_same_data_only]"

MUTANTS = [
    Mutant("the random state is the run's", "rng.py", "        torch.set_rng_state(before)\n", "        pass\n", GUEST),
    Mutant(
        "the number of threads is the run's", "device.py", "stack.callback(torch.set_num_threads, torch.get_num_threads())", "pass", GUEST
    ),
    Mutant(
        "signal handlers outside the main thread",
        "distributed/stop.py",
        "for number in SIGNALS if threading.current_thread() is threading.main_thread() else ():",
        "for number in SIGNALS:",
        "test_another_thread_trains_without_signal_handlers",
    ),
    Mutant(
        "the caller's default type trains",
        "device.py",
        "        torch.set_default_dtype(torch.float32)\n",
        "",
        "test_a_callers_settings_do_not_change_the_result_and_are_restored",
    ),
    Mutant(
        "two threads train at once",
        "api.py",
        "with _alone, output.escaping(), device.as_guest():",
        "with output.escaping(), device.as_guest():",
        "test_two_threads_train_one_after_another_and_get_the_same",
    ),
    Mutant(
        "a stopped run returns as if it were complete",
        "api.py",
        "    if code:\n        raise InterruptedError",
        "    if False:\n        raise InterruptedError",
        "test_a_signal_is_an_interrupted_error_with_the_call_that_continues",
    ),
    # data in memory
    Mutant(
        "floats are cut to bytes",
        "data/own.py",
        'if str(images.dtype).removeprefix("torch.") != "uint8":',
        "if False:",
        "test_odd_input[what_is_no_image_of_8_bits_is_refused_with_what_to_do]",
    ),
    Mutant(
        "rows of pixels become channels",
        "data/own.py",
        "array = array if array.shape[1] in (1, 3) else array.transpose(0, 3, 1, 2)",
        "array = array if array.shape[1] in (1, 3) else array.transpose(0, 3, 2, 1)",
        "test_odd_input[arrays_of_every_order_of_axes_are_the_same_images]",
    ),
    Mutant(
        "a class without images loses its number",
        "data/own.py",
        "return train.names, {number: number for number in range(len(train.names))}",
        "return train.names, {label: number for number, label in enumerate(labels)}",
        "test_odd_input[classes_come_from_labels_or_from_the_data_set]",
    ),
    Mutant("a run on own data says it is on CIFAR-10", "api.py", '"dataset": OWN_DATA if cfg.get("recipe") else None, ', "", OWN),
    # sweeps
    Mutant(
        "a sweep starts before its paths are checked",
        "config/sweep.py",
        "    for cfg in sweep.configs:\n        ready(cfg)\n",
        "",
        "test_odd_input[a_combination_that_cannot_be_trained_stops_a_sweep_before_its_first_run]",
    ),
    Mutant(
        "the rest of a sweep leaves out loops",
        "config/sweep.py",
        "for depth in range(deepest, -1, -1):",
        "for depth in range(deepest, deepest - 1, -1):",
        "test_odd_input[the_commands_for_the_rest_do_what_was_left_and_nothing_twice]",
    ),
    # configuration and paths
    Mutant(
        "a tilde is a folder's name",
        "config/load.py",
        'expanded = value if key == "run_id" else os.path.expanduser(value)',
        "expanded = value",
        "test_odd_input[the_home_folder_is_put_in_place_of_a_tilde_in_every_path_key]",
    ),
    Mutant(
        "relative paths are stored as typed",
        "config/load.py",
        "**{key: os.path.abspath(cfg[key]) for key in INPUTS",
        "**{key: cfg[key] for key in INPUTS",
        "test_odd_input[commands_in_another_folder_find_data_that_were_given_by_a_relative_path]",
    ),
    Mutant(
        "a cache that others can write",
        "runs/files.py",
        "status.st_uid == os.getuid() and not status.st_mode & 0o022",
        "status.st_uid == os.getuid()",
        "test_odd_input[a_temporary_folder_that_others_can_write_is_not_trusted]",
    ),
    Mutant(
        "an edited recipe is not read again",
        "config/files.py",
        "def read_text(path: Path) -> str:",
        "@functools.cache\ndef read_text(path: Path) -> str:",
        "test_odd_input[a_recipe_that_is_edited_between_two_calls_is_read_again]",
    ),
    Mutant(
        "a method gets the keys of another",
        "config/files.py",
        "if key not in own or key in used or not recipes}",
        "if True}",
        "test_odd_input[a_method_does_not_get_the_keys_of_another]",
    ),
    # what is printed
    Mutant(
        "ASCII stops a run",
        "output.py",
        'stream.reconfigure(errors="backslashreplace")',
        "pass",
        "test_what_a_stream_cannot_encode_is_escaped_and_the_stream_is_restored",
    ),
    Mutant(
        "a closed pipe stops a run",
        "output.py",
        "        except OSError:  # the reader",
        "        except ZeroDivisionError:  # the reader",
        "test_a_pipe_without_a_reader_and_a_full_disk_are_no_errors",
    ),
    Mutant(
        "a notebook has no bar",
        "progress.py",
        'return "IPKernelApp" in getattr(shell, "config", {})',
        "return False",
        "test_a_notebook_without_widgets_shows_a_bar_of_text",
    ),
    Mutant(
        "one folder of another user hides all others",
        "runs/find.py",
        '            print(f"left out: {path}',
        '            break\n            print(f"left out: {path}',
        "test_odd_input[a_run_folder_of_another_user_hides_no_other_run]",
    ),
]
