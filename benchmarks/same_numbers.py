"""Whether two commits of this repository train to the same numbers, bit for bit: every stage of the quickstart, on CPU.

A change that only moves code must not change a loss. With the same data, seed, number of threads and processor, a
training step is a fixed sequence of operations, and its results are the same down to the last bit. Add up in another
order, or draw one random number more, and a gradient norm differs in its last digits, a few hundred steps later in its
first. So numbers are compared exactly, without a tolerance.

Both commits are checked out into temporary git worktrees. One after the other, they train a miniature of all stages by
the command line that users give:

- Model and data are made once, by BEFORE's quickstart, and copied: only the code that trains differs. Packing plans,
  which a corpus keeps, are made by each commit.
- Each stage takes three steps of at least two sequences. Data, mixture, learning rate and what trains are those of
  examples/quickstart/*.yaml. A stage starts from an export of the stages before it, so exporting and loading take part.
- All stages run on one rank and again on two: data parallel, or for some stages split by tensors, sequence, context or
  pipeline with virtual stages; with and without overlap of communication. The plan is in benchmarks/miniature_runs.py.
- Held-out loss is measured before the first step and after the last. On two ranks, the stage in which everything trains
  is stopped before its last step and resumed in another layout.

Then every number of metrics.jsonl is compared that no clock has made: losses, losses by source, gradient norms,
learning rates, held-out losses, counts of tokens; and of every export the SHA-256 of every tensor. Fields that only one
commit records are named. Stages build on each other: for one number of ranks, look at the first row with a difference,
those below it may follow from it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.miniature_runs import Run, Runner, prepare, quickstart_commands, runs_of, stage_files, train_all
from benchmarks.recorded_numbers import Comparison, compare, digest, weights
from megatron_apriel.command_line import CommandLine
from megatron_apriel.errors import ConfigError, ExitCode, run_command

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """\
examples:
  # what is not committed yet, beside the last commit
  python benchmarks/same_numbers.py HEAD

  # two commits; runs, logs and metrics.jsonl stay in runs/compared to look at
  python benchmarks/same_numbers.py main my-branch --keep runs/compared

  # AFTER calls a field by another name
  python benchmarks/same_numbers.py main --renamed gradient_norm=grad_norm

exit codes: 0 everything was compared and is the same; 1 something differs or could not be compared. Two idle cores take
under four minutes.
"""


class Revision(NamedTuple):
    """What is to be checked out: how a person calls it, and the name of its files' tree in git."""

    name: str
    tree: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    arguments = _parser().parse_args(argv)
    renamed = dict(_renaming(text) for text in arguments.renamed)
    before = commit(arguments.before)
    after = commit(arguments.after) if arguments.after else working_tree()
    print(f"before: {before.name}\nafter: {after.name}", file=sys.stderr, flush=True)
    if before.tree == after.tree:
        print("both have the same files: only what depends on chance can differ", file=sys.stderr, flush=True)
    with _stoppable(), _scratch(arguments.keep) as scratch:
        with checked_out(before) as old, checked_out(after) as new:
            stages = run_both(old, new, scratch)
        found = [
            (run, compare(scratch / "before" / run.output, scratch / "after" / run.output, renamed))
            for runs in runs_of(stages).values()
            for run in runs
        ]
        final = [run for run, _ in found if run.stage == stages[-1]]
        exported = {run.layout: digest(weights(scratch / "after" / run.output / "final")) for run in final}
    return show(found, {f"{stages[-1]}, {layout}": sha for layout, sha in exported.items()})


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("before", metavar="BEFORE", help="a commit, branch or tag of this repository")
    parser.add_argument("after", metavar="AFTER", nargs="?", help="another (default: the working tree, with all files"
                        " that git does not ignore, as it stands at the start)")  # fmt: skip
    parser.add_argument("--renamed", action="append", default=[], metavar="OLD=NEW",
                        help="a field of BEFORE's records and its name in AFTER's; repeatable")  # fmt: skip
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a new directory for the runs and their logs (default:"
                        " a temporary one, removed at the end)")  # fmt: skip
    return parser


def _renaming(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise ConfigError(f"--renamed {text}: no pair of names.", fix="Write --renamed OLD=NEW.")
    return old, new


def git(*arguments: str, **variables: str) -> str:
    """What a git command on this repository prints. Raises ConfigError where it fails."""
    # A hook, or a person's own variables, may point git to another repository.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], env={**kept, **variables}, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise ConfigError(f"git cannot be started: {error}.", "Commits are checked out by it.") from None
    if done.returncode:
        raise ConfigError(f"git {' '.join(arguments)} failed.", done.stderr.strip())
    return done.stdout.strip()


def commit(name: str) -> Revision:
    """A commit by any of its names. Raises ConfigError where there is none."""
    try:
        found = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    except ConfigError:
        raise ConfigError(
            f"{name} is no commit of {ROOT}.",
            fix="git log --oneline shows those of this branch, git fetch gets others.",
        ) from None
    return Revision(f"{name} ({found[:12]})", git("rev-parse", f"{found}^{{tree}}"))


def working_tree() -> Revision:
    """The working tree as it stands, with files that are new to git and without those that it ignores.

    Kept among git's objects under an index of its own, so that nothing else changes and later edits do not count.
    """
    with tempfile.TemporaryDirectory() as directory:
        index = {"GIT_INDEX_FILE": str(Path(directory) / "index")}
        git("read-tree", "HEAD", **index)
        git("add", "--all", **index)
        return Revision(f"working tree of {ROOT}", git("write-tree", **index))


@contextlib.contextmanager
def checked_out(revision: Revision) -> Iterator[Path]:
    """A temporary git worktree with the files of a revision; removed at the end, however it comes."""
    with tempfile.TemporaryDirectory(prefix="same-numbers-", ignore_cleanup_errors=True) as directory:
        checkout = Path(directory).resolve() / "checkout"
        try:
            git("worktree", "add", "--quiet", "--detach", "--no-checkout", str(checkout), "HEAD")
            git("-C", str(checkout), "read-tree", "--reset", "-u", revision.tree)
            yield checkout
        finally:
            if checkout.exists():
                git("worktree", "remove", "--force", str(checkout))


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Within it the first Ctrl-C or SIGTERM starts to clean up, and further, impatient ones change nothing."""
    kinds = (signal.SIGINT, signal.SIGTERM)

    def interrupt(*_: Any) -> None:
        for kind in kinds:
            signal.signal(kind, signal.SIG_IGN)
        print("stopping what runs and removing the checkouts", file=sys.stderr, flush=True)
        raise KeyboardInterrupt

    before = {kind: signal.signal(kind, interrupt) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


@contextlib.contextmanager
def _scratch(kept: Path | None) -> Iterator[Path]:
    """An empty directory for the runs. Raises ConfigError where the one to be kept has something in it."""
    if kept is None:
        with tempfile.TemporaryDirectory(prefix="same-numbers-", ignore_cleanup_errors=True) as directory:
            yield Path(directory).resolve()
        return
    kept.mkdir(parents=True, exist_ok=True)
    if any(kept.iterdir()):
        raise ConfigError(
            f"--keep {kept}: the directory is not empty.", "Runs that lie there would be resumed.", "Give a new one."
        )
    yield kept.resolve()


def run_both(old: Path, new: Path, scratch: Path) -> list[str]:
    """Train all stages at both commits, one after the other; returns the stages' names in order."""
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - began:4.0f} s] {what}", file=sys.stderr, flush=True)

    given, logs = scratch / "given", scratch / "logs"
    logs.mkdir()
    runner = Runner(logs)
    commands = quickstart_commands(old, given)
    files = {"before": stage_files(commands), "after": stage_files(quickstart_commands(new, given))}
    if list(files["before"]) != list(files["after"]):
        raise ConfigError(
            f"the quickstart trains {', '.join(files['before'])} before and {', '.join(files['after'])} after.",
            "Stages build on each other: only the same ones in the same order can have the same numbers.",
        )
    prepare(commands, old, given, runner)
    say("model and data are made")
    train_all(files["before"], given, old, scratch / "before", runner, say)
    train_all(files["after"], given, new, scratch / "after", runner, say)
    return list(files["before"])


def show(found: Sequence[tuple[Run, Comparison]], exported: dict[str, str]) -> int:
    """Print what was found; the exit code."""
    table = Table(title="numbers of both commits", title_justify="left")
    for heading in ("stage", "ranks", "layout", "steps", "numbers", "tensors", "first difference"):
        table.add_column(heading, justify="right" if heading in ("ranks", "steps", "numbers", "tensors") else "left")
    for run, compared in found:
        counts = (compared.steps, compared.numbers, compared.tensors)
        first = compared.differences[0] if compared.differences else "-"
        more = f" (and {len(compared.differences) - 1} more)" if len(compared.differences) > 1 else ""
        layout = f"{run.layout}, resumed {run.resumed}" if run.resumed else run.layout
        table.add_row(run.stage, str(run.ranks), layout, *map(str, counts), escape(first + more))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    for what in dict.fromkeys(what for _, compared in found for what in compared.one_sided):
        print(f"not compared: {what}")
    for name, sha in exported.items():
        print(f"exported weights after {name}: SHA-256 {sha}")
    numbers, tensors = (sum(getattr(one, what) for _, one in found) for what in ("numbers", "tensors"))
    differing = [run for run, compared in found if compared.differences]
    if differing or not found:
        print(f"{len(differing)} of {len(found)} runs differ; {numbers} numbers and {tensors} tensors were compared")
        return ExitCode.FAILED
    print(f"all {numbers} numbers and {tensors} exported tensors of {len(found)} runs are the same")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(run_command(main))
