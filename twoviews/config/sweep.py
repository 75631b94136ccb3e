"""Several runs of one command (`--multirun`), and the configurations that a command stands for (`--cfg job`)."""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import yaml

from twoviews.config.load import Config, Word, assemble, check

MULTIRUN = ("--multirun", "-m")
ALONE = ("resume", "run_id")  # keys of pretrain that name one run


@dataclass(frozen=True)
class Sweep:
    """The runs of one command line: the product of the values of its words, the last word's values first.

    Args:
        words: of the command line.
        configs: of each run.
    """

    words: list[Word]
    configs: list[Config]

    def name(self, run: int) -> str:
        """Return what is special in a run: `seed=1 epochs=3`."""
        chosen = list(product(*(word.texts for word in self.words)))[run]
        named = [f"{word.shown.partition('=')[0]}={text}" for word, text in zip(self.words, chosen, strict=True) if len(word.texts) > 1]
        return " ".join(named) or "the only run"

    def commands_from(self, first: int, command: Sequence[str]) -> list[str]:
        """Return the shortest list of commands that do the runs from number `first` on.

        Args:
            first: number of the first run, from 0.
            command: the words that the user typed, with the program.
        """
        lengths = [len(word.texts) for word in self.words]
        digits: list[int] = []
        for length in reversed(lengths):
            first, digit = divmod(first, length)
            digits.insert(0, digit)
        deepest = max((i for i, digit in enumerate(digits) if digit), default=0)
        commands = []
        for depth in range(deepest, -1, -1):  # what is left of an inner loop, then of the loops around it
            start = digits[depth] + (depth != deepest)
            if start < lengths[depth]:
                fixed = [word.texts[digit : digit + 1] for word, digit in zip(self.words[:depth], digits, strict=False)]
                left = [*fixed, self.words[depth].texts[start:], *(word.texts for word in self.words[depth + 1 :])]
                commands.append(shlex.join(self._narrowed(left).get(typed, typed) for typed in command))
        return commands

    def _narrowed(self, left: list[tuple[str, ...]]) -> dict[str, str]:
        """Return for each word with several values, as it was typed, the word with the values that are left."""
        pairs = [(word.shown, texts) for word, texts in zip(self.words, left, strict=True) if len(word.texts) > 1]
        return {shown: f"{shown.partition('=')[0]}={','.join(texts)}" for shown, texts in pairs}


def expand(verb: str, argv: Sequence[str], typed: Sequence[str] | None = None) -> Sweep:
    """Return the runs of a command line with `--multirun`, each of them checked.

    Raises:
        ValueError: as `load`; for a combination, with its values.
    """
    if verb not in ("pretrain", "evaluate"):
        raise ValueError(f"--multirun: {verb} runs once: expected pretrain or evaluate")
    kept = [i for i, word in enumerate(argv) if word not in MULTIRUN]
    words = check(verb, [argv[i] for i in kept], sweep=True, typed=[(typed or argv)[i] for i in kept])
    for word in words:
        if word.key in ALONE and verb == "pretrain" and word.values != (None,):
            raise ValueError(f"{word.shown}: names one run, and --multirun does several: leave one of them out")
    sweep = Sweep(words, [])
    for number, values in enumerate(product(*(word.values for word in words))):
        try:
            sweep.configs.append(assemble(verb, dict(zip([word.key for word in words], values, strict=True))))
        except ValueError as error:
            raise ValueError(f"{error} (in the run {sweep.name(number)})") from None
    return sweep


def run_sweep(
    verb: str,
    argv: Sequence[str],
    task: Callable[[Config], int],
    typed: Sequence[str] | None = None,
    *,
    ready: Callable[[Config], None],
    command: Sequence[str],
) -> int:
    """Run `--multirun`, one run after another, after all of them were checked.

    Args:
        verb: `pretrain` or `evaluate`.
        argv: the words after the verb, `--multirun` among them.
        task: called once per run; the sweep stops at the first exit code that is not 0.
        typed: see `load`.
        ready: raises ValueError for a configuration whose files are missing.
        command: what the user typed, with the program.

    Returns:
        The last exit code.

    Raises:
        ValueError: as `expand` and `ready`, before the first run.
    """
    sweep = expand(verb, argv, typed)
    for cfg in sweep.configs:
        ready(cfg)
    for number, cfg in enumerate(sweep.configs):
        print(f"run {number + 1} of {len(sweep.configs)}: {sweep.name(number)}", flush=True)
        code = None
        try:
            code = task(cfg)
        finally:
            if code != 0:
                _print_rest(sweep, number, command)
        if code:
            return code
    return 0


def _print_rest(sweep: Sweep, stopped: int, command: Sequence[str]) -> None:
    """Print which runs are done, and the commands that do the others."""
    total = len(sweep.configs)
    if total == 1:
        return
    done = "; ".join(sweep.name(number) for number in range(stopped))
    print(f"the sweep stopped in run {stopped + 1} of {total} ({sweep.name(stopped)}); done: {done or 'none'}", file=sys.stderr)
    print("for this run again and those after it (to continue it instead, resume it and leave it out here):", file=sys.stderr)
    for line in sweep.commands_from(stopped, command):
        print(f"  {line}", file=sys.stderr)


def show_config(verb: str, argv: Sequence[str], typed: Sequence[str] | None = None) -> str:
    """Return the resolved configuration as YAML, for `--cfg job`; with `--multirun` one document for each run.

    Raises:
        ValueError: as `load`, or if the words after `--cfg` are not `job`.
    """
    flags = [i for i, word in enumerate(argv) if word in ("--cfg", "-c")]
    if len(flags) != 1 or argv[flags[0] + 1 : flags[0] + 2] != ["job"]:
        raise ValueError("--cfg: expected --cfg job")
    kept = [i for i in range(len(argv)) if i not in (flags[0], flags[0] + 1)]
    words, shown = [argv[i] for i in kept], [(typed or argv)[i] for i in kept]
    if any(word in MULTIRUN for word in words):
        return yaml.safe_dump_all(map(dict, expand(verb, words, shown).configs), sort_keys=False, allow_unicode=True)
    cfg = assemble(verb, {word.key: word.values[0] for word in check(verb, words, sweep=False, typed=shown)})
    return yaml.safe_dump(dict(cfg), sort_keys=False, allow_unicode=True)
