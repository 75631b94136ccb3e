"""What follows training: evaluation, statistics of the features, report. A step that fails harms nothing and can be repeated alone."""

import shlex
import time
from collections.abc import Callable
from typing import Any

from twoviews import build, device, distributed, evaluation, inspection, runs
from twoviews.config import Config
from twoviews.report import html
from twoviews.report.text import accuracy_table, features_in_words

STATISTICS, REPORT = "statistics", "report"  # names of steps in the summary's list `unfinished`, beside those of probes


def finish(cfg: Config, parts: build.Parts, probes: tuple[str, ...], folder: runs.RunFolder, summary: dict[str, Any], began: float) -> None:
    """Evaluate a trained run, describe its features, and write its report; the summary is written after every probe and step.

    With several processes, all evaluate; the first one does the rest.

    Args:
        cfg, parts: of the run.
        probes: names from `protocols.parse` that are still to be evaluated.
        folder: of the run, whose weights are written.
        summary: of the run; its rows stay unless a probe replaces them.
        began: `time.perf_counter()` at the beginning of the run.

    Raises:
        runs.StepFailed: if a step failed; the others were done, and the message has the command that repeats the failed ones.
    """
    kept, left = summary["evaluations"], {"probes": list(probes), STATISTICS: [STATISTICS], REPORT: [REPORT]}

    def write() -> None:
        summary["unfinished"] = [name for names in left.values() for name in names]
        if left[REPORT]:  # the report shows this number, so it stays when the report is written
            summary["wall_seconds"] = round(time.perf_counter() - began, 1)
        folder.write(runs.SUMMARY, summary)

    earlier, start = summary["evaluation_seconds"], time.perf_counter()

    def store(rows: list[dict[str, Any]], later: list[str]) -> None:
        summary["evaluations"], left["probes"] = evaluation.merged(kept, rows), later
        summary["evaluation_seconds"] = round(earlier + time.perf_counter() - start, 1)
        write()

    def evaluate() -> None:
        evaluation.evaluate(cfg, parts, probes, data=parts.dataset, seed=cfg.seed, store=store)
        left["probes"] = []
        if summary["evaluations"]:
            print(accuracy_table(summary))

    def describe() -> None:
        summary.update(inspection.inspect(cfg, parts))
        left[STATISTICS] = []
        if not summary["evaluations"]:
            print(features_in_words(summary["diagnostics"]))

    def report() -> None:
        print(f"\n{_times(summary)}everything {time.perf_counter() - began:.0f} s; {folder.path}")
        html.write(folder, parts.views, parts.dataset)
        left[REPORT] = []

    write()
    failures = [_guarded("the evaluation", evaluate, write, cfg, folder, summary)]
    rest = {"the statistics of the features": describe, "the report": report} if distributed.first() else {}
    with distributed.alone():
        failures += [_guarded(name, step, write, cfg, folder, summary) for name, step in rest.items()]
    distributed.on_first(lambda: None)  # torchrun ends all processes with the first that has failed
    if any(failures):
        kept = f"the weights and {len(summary['evaluations'])} accuracies are kept"
        raise runs.StepFailed(f"{'; '.join(filter(None, failures))}; {kept}; to repeat this: {_again(folder)}", folder.path)


def _times(summary: dict[str, Any]) -> str:
    """Return how long the parts of a run took, each followed by a semicolon."""
    train = summary["train"]
    beside = {"checks": train["probe_seconds"], "checkpoints": train["checkpoint_seconds"], "evaluation": summary["evaluation_seconds"]}
    others = "".join(f"{name} {seconds:.0f} s; " for name, seconds in beside.items() if seconds >= 0.5)
    return f"training {train['seconds']:.0f} s at {train['views_per_s']:,.0f} views/s; {others}"


def _again(folder: runs.RunFolder) -> str:
    """Return the command that repeats what is unfinished."""
    return f"{distributed.program()} pretrain {shlex.quote(f'resume={folder.path}')}"


def _guarded(
    name: str, step: Callable[[], None], write: Callable[[], None], cfg: Config, folder: runs.RunFolder, summary: dict[str, Any]
) -> str:
    """Do one step and write the summary. Return what went wrong, or an empty text."""
    try:
        with device.naming_memory(""):
            step()
        write()
    except KeyboardInterrupt:
        print(f"\nstopped in {name}: the weights and {len(summary['evaluations'])} accuracies are kept; to continue: {_again(folder)}")
        raise
    except Exception as error:
        if cfg.debug:
            raise
        return f"{name} failed ({type(error).__name__}: {' '.join(str(error).split())})"
    return ""
