"""Faults in the configuration and in the commands of the reference projects."""

from mutants.mutant import Mutant

MUTANTS = [
    Mutant(
        "the user's OpenMP policy is overridden",
        "cli.py",
        'if verb != "bench" and "OMP_WAIT_POLICY" not in os.environ:',
        'if verb != "bench":',
        "test_idle_threads_wait_actively_for_a_short_time_only_unless_the_user_decides",
    ),
    Mutant("+key accepted", "config/load.py", "if key != bare:", "if False:", "test_near_misses_are_told_what_to_type"),
    Mutant(
        "a wrong value is reported as the recipe's",
        "config/load.py",
        "if not expected.accepts(value):\n            choices",
        "if False:\n            choices",
        "test_near_misses_are_told_what_to_type",
    ),
    Mutant(
        "values of a recipe not checked",
        "config/files.py",
        "if not rule(verb, key).accepts(value):",
        "if False:",
        "test_a_value_of_a_recipe_that_is_out_of_range_is_reported",
    ),
    Mutant(
        "ranges ignored",
        "config/schema.py",
        "self.low <= value <= self.high",
        "self.low <= value",
        "test_a_rule_accepts_its_values_and_says_what_it_expects",
    ),
    Mutant(
        "a path is parsed as Hydra's grammar",
        "config/load.py",
        "    if key in PATH_KEYS:\n        return Word(",
        "    if False:\n        return Word(",
        "test_a_path_is_taken_literally",
    ),
    Mutant(
        "keys without a value reach every method",
        "config/files.py",
        "if key in taken and value != UNSET}",
        "if key in taken}",
        "test_a_recipe_has_the_keys_that_its_method_takes_and_no_others",
    ),
    Mutant(
        "a key of one method has a default for all",
        "config/base.yaml",
        "queue_size: ???",
        "queue_size: 4096",
        "test_a_recipe_has_the_keys_that_its_method_takes_and_no_others",
    ),
    Mutant(
        "a default of base.yaml in place of the recipe's",
        "config/recipes/simclr.yaml",
        "base_learning_rate: 0.3\n",
        "",
        "config/test_recipes.py",
    ),
    Mutant(
        "science keys change on resume",
        "commands/pretrain.py",
        'keys("science", "machine")',
        'keys("machine")',
        "test_output_and_probe_keys_may_change_on_resume_and_no_others",
    ),
    Mutant(
        "probe keys are not free on resume",
        "commands/pretrain.py",
        'keys("output", "probe", verb="pretrain")',
        'keys("output", verb="pretrain")',
        "test_output_and_probe_keys_may_change_on_resume_and_no_others",
    ),
    Mutant(
        "keys of other roles are returned too", "config/schema.py", "(not roles or rule.role in roles)", "True", "config/test_schema.py"
    ),
    Mutant(
        "a verb takes the keys of all verbs",
        "config/schema.py",
        "(verb is None or verb in rule.verbs)",
        "True",
        "test_a_verb_takes_its_own_keys_only",
    ),
    # reference projects
    Mutant(
        "MoCo's decay is SGD's momentum",
        "config/reference.py",
        '"moco_m": "ema_decay"',
        '"moco_m": "momentum"',
        "test_every_key_name_of_the_project_reaches_our_key_and_no_other",
    ),
    Mutant(
        "the file beside the script wins over typed words",
        "config/reference.py",
        "        if name not in given:\n            ours.append(our_word)",
        "        if True:\n            ours.append(our_word)",
        "test_typed_words_have_precedence_over_the_file",
    ),
    Mutant(
        "the last weights in place of an epoch's",
        "commands/evaluate.py",
        "runs.epoch_file(path, cfg.load_epoch)",
        "file",
        "test_run_and_load_epoch_choose",
    ),
    Mutant(
        "an evaluation uses the seed of the file, not of its run",
        "config/reference.py",
        '*(["seed"] if script.verb == "evaluate" else [])',
        "",
        "test_an_evaluation_uses_the_seed_of_its_run_unless_one_is_typed",
    ),
]
