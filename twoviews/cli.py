"""From the command line to one command: `twoviews <verb> key=value ...`.

Torch is imported inside the commands, so that help and errors answer at once.
"""

import contextlib
import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from twoviews import config, contention, output
from twoviews.config.hints import did_you_mean, usage
from twoviews.config.schema import RULES, VERBS

USAGE = """usage: twoviews <verb> key=value ...

  twoviews pretrain recipe=demo                     train an encoder without labels, then evaluate it
  twoviews evaluate run=latest probes=reference     evaluate a finished run again
  twoviews data data_dir=photos                     what would be read from a folder of images, and a picture of it
  twoviews embed run=latest data_dir=photos         features of images, as a file
  twoviews export run=latest to=torchvision         the trained encoder for torchvision, timm, onnxruntime or the Hugging Face Hub
  twoviews runs compare                             all runs; mean ± std over seeds; tables of the reference projects
  twoviews report run=latest                        write the run's report.html again
  twoviews bench what=all                           speed beside other tools (in a clone of the repository)
  twoviews methods                                  the methods, their papers and recipes
  twoviews doctor                                   what this machine has and what would be chosen on it

  twoviews completion bash                          completion of keys and values: eval "$(twoviews completion bash)" (or zsh, fish)
  twoviews <verb> --help                            the keys of a verb, each with its value and meaning
  twoviews pretrain --cfg job                       the same keys and values as YAML
  twoviews pretrain seed=0,1,2 --multirun           several runs, one after another
"""

DIVERGED, STEP_FAILED, INTERRUPTED = 3, 4, 130
FIRST = 3.0  # seconds that other processes wait with an error that all have: the first one has printed it, and torchrun ends them
SPIN = "10000"  # turns that an idle OpenMP thread waits actively, in place of 300,000: docs/performance.md


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: words after the program's name; those of the process by default.

    Returns:
        Exit code: 0 success, 1 a failure while running, 2 a command line that cannot be run, 3 a loss or weights that
        are not finite, 4 a step after training failed (the weights are kept), 128 + signal if a signal stopped it.
    """
    with output.unbreakable():
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    verb, words = words[0], words[1:]
    if verb == "--version":
        from importlib.metadata import version

        print(f"twoviews {version('twoviews')}")
        return 0
    if verb == "completion":
        from twoviews.config import completion

        try:
            print(completion.script(words[0] if words else "bash"), end="")
        except ValueError as error:
            return _fail(str(error), 2)
        return 0
    if verb not in VERBS:
        key, equals, value = verb.lstrip("-").partition("=")
        near = did_you_mean(verb, VERBS)
        if key in RULES and not near:
            first, others = RULES[key].verbs[0], RULES[key].verbs[1:]
            more = f" (or after {', '.join(others)})" if others else ""
            return _fail(f"{verb}: expected a verb before the key: type twoviews {first} {key}={value if equals else '<value>'}{more}", 2)
        if key in RULES["recipe"].choices:
            return _fail(f"{verb}: no such verb: type twoviews pretrain recipe={key}", 2)
        return _fail(f"{verb}: no such verb{near} (twoviews --help lists them)", 2)
    if verb == "runs" and words and "=" not in words[0] and not words[0].startswith("-"):
        words[0] = f"view={words[0]}"
    return _dispatch(lambda: (verb, words, None), words, ["twoviews", verb, *words])


def script(path: str, argv: Sequence[str] | None = None) -> int:
    """Run a command of a reference project.

    Args:
        path: the file that was run.
        argv: words after its name; those of the process by default.

    Returns:
        Exit code, as `main`.
    """
    with output.unbreakable():
        return _script(path, list(sys.argv[1:] if argv is None else argv))


def _script(path: str, argv: list[str]) -> int:
    name = Path(path).name
    missing = [module for module in ("torch", "hydra", "yaml") if importlib.util.find_spec(module) is None]
    if missing:
        ours = Path(path).resolve().parent / ".venv/bin/python"
        if ours.is_file() and Path(sys.prefix) != ours.parent.parent:
            print(f"{sys.executable} has no {missing[0]}: continuing with {ours}", flush=True)
            os.execv(ours, [str(ours), path, *argv])
        return _fail(f"{name}: {sys.executable} has no {', '.join(missing)}: run make demo once: it creates .venv", 2)
    from twoviews.config import reference

    if any(word in ("--help", "-h") for word in argv):
        try:
            print(reference.usage(Path(path)), end="")
        except ValueError as error:
            return _fail(str(error), 2)
        return 0
    return _dispatch(lambda: reference.translate(Path(path), argv), argv, ["python", name, *argv])


def _dispatch(read: Callable[[], tuple[str, list[str], list[str] | None]], argv: Sequence[str], command: Sequence[str]) -> int:
    """Run the command that `read` returns: a verb, our words, and what was typed for each word where that differs."""
    debug = any(word.lower() == "debug=true" for word in argv)  # for errors in the words themselves
    try:
        verb, words, typed = read()
        if any(word in ("--help", "-h") for word in words):
            recipe = [word for word in words if word.startswith("recipe=")]
            print(usage(verb, config.load(verb, recipe if verb == "pretrain" else [])), end="")
            return 0
        if any(word in ("--cfg", "-c") for word in words):
            print(config.show_config(verb, words, typed), end="")
            return 0
        if any(word in ("--multirun", "-m") for word in words):
            return config.run_sweep(verb, words, lambda cfg: _run(verb, cfg), typed, ready=_check_paths, command=command)
        cfg = config.load(verb, words, typed)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except Exception as error:  # Hydra has its own errors for words that it cannot parse
        if debug:
            raise
        return _fail(" ".join(str(error).split()), 2)
    return _run(verb, cfg)


def _check_paths(cfg: config.Config) -> None:
    """Refuse a run of a sweep whose data or trained run do not exist: before the first run of the sweep."""
    from twoviews import runs

    if cfg.get("dataset") == "folder" and not cfg.data_dir:
        raise ValueError("dataset=folder: expected data_dir=<folder of images>")
    if cfg.get("data_dir") and not Path(cfg.data_dir).exists():
        raise ValueError(f"data_dir={cfg.data_dir}: no such file or folder")
    if cfg.get("run"):
        runs.check_unlocked(runs.find(cfg.run, Path(cfg.runs_dir)))


def _can_still_choose() -> bool:
    """Return whether torch will read how its threads wait: it is not loaded, this is the only process, and nobody has said it."""
    return "torch" not in sys.modules and "WORLD_SIZE" not in os.environ and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ)


def _run(verb: str, cfg: config.Config) -> int:
    from twoviews import runs

    if cfg.get("threads") == "polite":  # as many threads as without it, so that results stay equal
        os.environ["OMP_WAIT_POLICY"] = "passive"
        cfg["threads"], cfg.given = None, tuple(key for key in cfg.given if key != "threads")
    elif verb in ("pretrain", "evaluate", "embed") and cfg.get("threads", 1) is None and _can_still_choose():
        share = contention.busy_now()
        if share >= contention.SHARE:
            os.environ["OMP_WAIT_POLICY"] = "passive"
            print(f"other programs use {100 * share:.0f} % of these cores: the threads of this command wait passively (threads=polite)")
    if verb != "bench" and "OMP_WAIT_POLICY" not in os.environ:  # a benchmark's other tools keep their own default
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN)  # read when torch is imported
    follows = _rank() > 0  # of several processes: the first one reports what is wrong with the run folder
    if follows and verb not in ("pretrain", "evaluate"):
        return 0
    try:
        # embed and export take files and bundled models, too; runs only reads
        run = cfg.get("resume") or (cfg.get("run") if verb not in ("embed", "export", "runs") else None)
        if run and run != "latest" and not follows:  # before torch is imported: a wrong name, or a run in use, is reported at once
            for name in runs.several(run, Path(cfg.runs_dir)) if verb == "report" else [run]:
                runs.check_unlocked(runs.find(name, Path(cfg.runs_dir), key="resume" if cfg.get("resume") else "run"))
        command = importlib.import_module(f"twoviews.commands.{verb}")
        if "threads" in cfg:  # it computes; a caller of the Python interface keeps the C library's own settings
            runs.use_caches_that_can_be_written()
            importlib.import_module("twoviews.device").keep_freed_memory()
        return int(command.run(cfg))
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except Exception as error:
        if cfg.debug:
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, ValueError | FileNotFoundError):
            return _fail(message, 2)
        if isinstance(error, runs.StepFailed):
            return _fail(message, STEP_FAILED)
        if isinstance(error, FloatingPointError):
            return _fail(message, DIVERGED)
        if isinstance(error, MemoryError):
            return _fail(message if "out of memory" in message else "out of memory, before anything was trained", 1)
        if isinstance(error, OSError) and error.filename:
            return _fail(f"{error.filename}: {error.strerror}", 1)
        from twoviews.distributed import ProcessLost

        if isinstance(error, ProcessLost):
            return _fail(message, 1)
        return _fail(f"{type(error).__name__}: {message} (debug=true shows where)", 1)


def _rank() -> int:
    """Return the number that torchrun gave this process; 0 without torchrun."""
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0


def _fail(message: str, code: int) -> int:
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torchrun's report at the end shows it
        text = {"message": message, "extraInfo": {"py_callstack": f"twoviews: {message}", "timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps({"message": text}), encoding="utf-8")
    if _rank() and code in (2, DIVERGED, STEP_FAILED):
        time.sleep(FIRST)
    print(f"twoviews: {message}", file=sys.stderr)
    return code
