"""Faults in what follows training: evaluation probe by probe, steps that fail, images without labels."""

from mutants.mutant import Mutant

MUTANTS = [
    Mutant(
        "rows are stored when all probes have ended",
        "evaluation.py",
        "if store is not None:",
        "if store is not None and number == len(steps) - 1:",
        "test_ctrl_c_keeps_the_probes_that_ended",
    ),
    Mutant(
        "an evaluation is repeated whole",
        "commands/pretrain.py",
        'if (left := before.get("unfinished")) and "probes" not in cfg.given:',
        'if False and (left := before.get("unfinished")):',
        "test_only_what_is_left_is_repeated",
    ),
    Mutant(
        "a failed step ends the others",
        "finish.py",
        "        if cfg.debug:\n            raise\n        return",
        "        raise\n        return",
        "commands/test_finish.py",
    ),
    Mutant(
        "a failed step is not left",
        "finish.py",
        'summary["unfinished"] = [name for names in left.values() for name in names]',
        'summary["unfinished"] = []',
        "commands/test_finish.py",
    ),
    Mutant(
        "a run with failed steps counts as finished",
        "runs/find.py",
        '.get("unfinished")',
        ".get(None)",
        "test_only_what_is_left_is_repeated",
    ),
    Mutant(
        "an image is its own neighbour",
        "probes/knn.py",
        "scores.diagonal(number * QUERIES).fill_(-torch.inf)",
        "pass",
        "probes/test_knn.py",
    ),
    Mutant(
        "an image of the second part is its own neighbour",
        "probes/knn.py",
        "scores.diagonal(number * QUERIES)",
        "scores.diagonal(0)",
        "probes/test_knn.py",
    ),
    Mutant(
        "a data set without test images is evaluated with the image itself",
        "evaluation.py",
        "max_steps, split == LEFT_OUT)",
        "max_steps, False)",
        "test_odd_input[classes_of_two_images_are_evaluated_by_leaving_one_out]",
    ),
    Mutant(
        "statistics of a handful of images",
        "build.py",
        "images if len(images) >= LEAST_SAMPLE else",
        "images if len(images) else",
        "test_odd_input[few_images_give_no_warning_of_a_collapse_by_their_number_alone]",
    ),
    Mutant(
        "characters without a glyph are drawn",
        "report/plots.py",
        'c if font.get_char_index(ord(c)) else c.encode("unicode_escape").decode()',
        "c",
        "test_odd_input[class_names_without_a_glyph_are_shown_escaped]",
    ),
    Mutant(
        "a collapse is not named", "report/text.py", "if spread < COLLAPSED or rank < 2:", "if spread < COLLAPSED:", "report/test_text.py"
    ),
]
