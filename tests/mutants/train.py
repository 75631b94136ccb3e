"""Faults in the training loop, in resuming, and in what a run prints."""

from mutants.mutant import Mutant

N1 = "test_n1_a_value_that_is_not_finite_stops_the_run_keeps_the_last_good_weights_and_can_be_replayed"
R1 = "test_r1_a_run_stopped_after_any_step_continues_bit_for_bit[simclr]"

MUTANTS = [
    Mutant("gradients pile up", "train.py", "optimizer.zero_grad(set_to_none=True)", "pass", "test_r5_losses_are_the_stored_ones[simclr]"),
    Mutant(
        "every step sees the views of step 0",
        "train.py",
        "views.draw(cfg.seed, step, len(rows))",
        "views.draw(cfg.seed, 0, len(rows))",
        "test_r5_losses_are_the_stored_ones[simclr]",
    ),
    Mutant(
        "the momentum encoder never follows",
        "train.py",
        "            method.after_step(progress)\n",
        "",
        "test_r5_losses_are_the_stored_ones[moco]",
    ),
    Mutant("max_steps shortens the schedule", "train.py", "            steps=self.steps,\n", "            steps=self.last,\n", R1),
    Mutant(
        "a group with constant_lr follows the schedule",
        "train.py",
        'self.peak_rate if group.get("constant_lr") else rate',
        "rate",
        "test_a_group_with_constant_lr_keeps_the_peak_rate",
    ),
    # checkpoints
    Mutant("optimiser not restored", "train.py", 'parts.optimizer.load_state_dict(state["optimizer"])', "pass", R1),
    Mutant("method not restored", "train.py", 'parts.method.load_state_dict(state["method"])', "pass", R1),
    Mutant(
        "metrics not cut back on resume",
        "train.py",
        'run.truncate_metrics(state["step"])',
        "pass",
        "test_resume_falls_back_to_the_previous_checkpoint",
    ),
    Mutant("a resumed step is repeated", "train.py", 'return state["step"], clock', 'return state["step"] - 1, clock', R1),
    Mutant(
        "a signal during a save is lost",
        "distributed.py",
        "        self.signal = number\n",
        "        self.signal = None\n",
        "test_s1_a_signal_in_any_step_leaves_a_checkpoint_of_that_step",
    ),
    Mutant("weights of NaN are saved", "train.py", "method if saving or keeping else None", "None", N1),
    Mutant("a loss of NaN is logged", "train.py", 'if not math.isfinite(row["loss"])), None)', "if False), None)", N1),
    Mutant("a diverged run ends as any failure", "cli.py", "if isinstance(error, FloatingPointError):", "if False:", N1),
    Mutant(
        "an epoch is lost where nothing else is due",
        "train.py",
        "probing or keeping or saving:",
        "probing or saving:",
        "test_the_backbone_is_saved_every_so_many_epochs",
    ),
    Mutant(
        "weights beside the summary of others",
        "commands/pretrain.py",
        """before["train"]["steps"] != trained["steps"]:""",
        "False:",
        "test_a_summary_is_never_beside_the_weights_of_another_step",
    ),
    Mutant(
        "a second interrupt ends as a success",
        "distributed.py",
        "raise KeyboardInterrupt  # not os._exit",
        "__import__('os')._exit(0)  # not os._exit",
        "test_s2_a_second_interrupt_does_not_wait_for_the_step",
    ),
    Mutant(
        "a run under nohup ends with its terminal",
        "distributed.py",
        "if before is None or (number == signal.SIGHUP and before is signal.SIG_IGN):",
        "if before is None:",
        "test_s1_a_run_under_nohup_outlives_its_terminal",
    ),
    Mutant(
        "the backbone is saved a step late",
        "train.py",
        "done % max(1, round(epochs",
        "(done - 1) % max(1, round(epochs",
        "test_the_backbone_is_saved_every_so_many_epochs",
    ),
    Mutant(
        "weights of another run are not loaded",
        "build.py",
        "if init is not None:",
        "if False:",
        "test_init_starts_a_new_run_from_the_weights_of_another",
    ),
    Mutant(
        "auto is decided again on resume",
        "commands/pretrain.py",
        "stored |= {key: used[key] for key in RULES if key in used}",
        "pass",
        "test_what_auto_became_does_not_change_on_resume",
    ),
    Mutant(
        "a resumed run stops where max_steps cut it short",
        "commands/pretrain.py",
        'free["max_steps"] = None',
        "pass",
        "test_a_resumed_run_continues_to_its_end_with_the_machine_keys_of_the_manifest",
    ),
    Mutant(
        "resumed on other data",
        "commands/pretrain.py",
        "            runs.check_data(path, parts.dataset.digest)\n",
        "",
        "commands/test_resume.py::test_changed_data_are_refused",
    ),
    # messages
    Mutant(
        "a collapse is not reported",
        "train.py",
        "if z_spread < SPREAD_FLOOR or rank < 2:",
        "if False:",
        "test_a_collapse_is_reported_while_it_happens",
    ),
    Mutant("the clock counts steps that compile", "progress.py", "if not compiling:", "if True:", "test_progress.py"),
    Mutant(
        "the rate counts the steps before a resume",
        "progress.py",
        "(self.done - self.start) * self.scale",
        "self.done * self.scale",
        "test_progress.py",
    ),
    Mutant("the clock counts probes", "progress.py", "        self._mark = now\n        if done", "        if done", "test_progress.py"),
    Mutant(
        "the seconds before a resume are lost",
        "progress.py",
        'self.total, self.steady = state["total"], state["steady"]',
        'self.steady = state["steady"]',
        "test_progress.py",
    ),
]
