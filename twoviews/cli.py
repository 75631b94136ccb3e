"""argv to one command: `twoviews <verb> key=value ...`. Torch is imported inside the verbs, so that help and errors are quick."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from twoviews import config, lock, rules, runs

USAGE = """usage: twoviews <verb> key=value ...

  twoviews pretrain recipe=fashion_thin             train an encoder without labels, then read it out
  twoviews evaluate run=latest probes=fast|seeds    read out a finished run again
  twoviews runs [best|compare|second_seed|...]      all runs; mean ± std over seeds; the seeds' tables
  twoviews report run=latest                        write the run's report.html again
  twoviews bench what=all                           side by side with the peers (in a checkout)
  twoviews doctor                                   what this machine has and what TwoViews would choose

  twoviews <verb> --help                            the keys of a verb
  twoviews pretrain --cfg job                       the resolved configuration
  twoviews pretrain seed=0,1,2 --multirun           several runs, one after another
"""

DIVERGED, INTERRUPTED = 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: words after the program's name; the process's own by default.

    Returns:
        Exit code: 0 done, 1 a failure while running, 2 a command line that cannot be run, 3 a loss or weights that are not finite,
        130, 143, 129 or 138 stopped by SIGINT, SIGTERM, SIGHUP or SIGUSR1.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    verb, words = words[0], words[1:]
    if verb == "--version":
        from importlib.metadata import version

        print(f"twoviews {version('twoviews')}")
        return 0
    if verb not in config.VERBS:
        near = difflib.get_close_matches(verb, config.VERBS, 1, cutoff=0.3)
        return _fail(f"{verb}: no such verb{f': did you mean {near[0]}?' if near else ''} (twoviews --help lists them)", 2)
    if verb == "runs" and words and words[0] in rules.RULES["view"].choices:
        words[0] = f"view={words[0]}"
    return _dispatch(lambda: (verb, words, None), words)


def script(path: str, argv: Sequence[str] | None = None) -> int:
    """Run one of the seeds' own commands.

    Args:
        path: of the file that was run.
        argv: words after its name; the process's own by default.

    Returns:
        Exit code, as `main`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name = Path(path).name
    missing = [module for module in ("torch", "hydra", "yaml") if importlib.util.find_spec(module) is None]
    if missing:
        ours = Path(path).resolve().parent / ".venv/bin/python"
        if ours.is_file() and Path(sys.prefix) != ours.parent.parent:
            print(f"{sys.executable} has no {missing[0]}: going on with {ours}", flush=True)
            os.execv(ours, [str(ours), path, *argv])
        return _fail(f"{name}: {sys.executable} has no {', '.join(missing)}: make demo sets up .venv, then python {name} finds it", 2)
    from twoviews import seeds

    if any(word in ("--help", "-h") for word in argv):
        try:
            print(seeds.usage(Path(path)), end="")
        except ValueError as error:
            return _fail(str(error), 2)
        return 0
    return _dispatch(lambda: seeds.words(Path(path), argv), argv)


def _dispatch(read: Callable[[], tuple[str, list[str], list[str] | None]], argv: Sequence[str]) -> int:
    """Run the command that `read` makes of `argv`: a verb, our words, and what was typed for each where that differs."""
    debug = any(word.lower() == "debug=true" for word in argv)  # for errors in the words themselves
    try:
        verb, words, typed = read()
        if any(word in config.FLAGS for word in words):
            return config.with_hydra(verb, words, lambda cfg: _run(verb, cfg), typed)
        cfg = config.load(verb, words, typed)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except Exception as error:  # Hydra has errors of its own for words that it cannot read
        if debug:
            raise
        return _fail(" ".join(str(error).split()), 2)
    return _run(verb, cfg)


def _run(verb: str, cfg: config.Config) -> int:
    try:
        place = cfg.get("resume") or cfg.get("run")
        if place and place != "latest":  # before torch: a name that is none, or a run that is in use, is said at once
            lock.look(runs.find(place, Path(cfg.runs_dir)))
        return int(importlib.import_module(f"twoviews.commands.{verb}").run(cfg))
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except Exception as error:
        if cfg.debug:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, ValueError | FileNotFoundError):
            return _fail(message, 2)
        if isinstance(error, FloatingPointError):
            return _fail(message, DIVERGED)
        if isinstance(error, MemoryError):
            return _fail(message if "out of memory" in message else "out of memory, before anything was trained", 1)
        return _fail(f"{type(error).__name__}: {message} (debug=true shows where)", 1)


def _fail(message: str, code: int) -> int:
    print(f"twoviews: {message}", file=sys.stderr)
    return code
