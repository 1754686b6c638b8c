"""Every stage of the quickstart trained in miniature at one commit, on one rank and on two, by command lines alone.

Nothing of the package is imported: the commit that is run may have its modules in other places. What the quickstart
consists of is asked of its own ``run.py --list``; from there on only the command line, the settings of a stage and the
files of a run (``docs/``) are taken for granted.
"""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import yaml

from benchmarks.recorded_numbers import read_records
from megatron_apriel.errors import ConfigError

STEPS = 3
"""Of a stage: the last follows an update that the optimizer's moments of two steps have formed."""
SMALLEST_BATCH = 2048
"""Tokens; two sequences in any case, so that two ranks have one each. Stage 1 gets four: gradients add up."""


class Layout(NamedTuple):
    """Ranks and the settings of ``parallel``."""

    ranks: int
    settings: tuple[str, ...] = ()


LAYOUTS = {
    "DP1": Layout(1),
    "DP1, no overlap": Layout(1, ("overlap=false",)),
    "DP2": Layout(2),
    "DP2, no overlap": Layout(2, ("overlap=false",)),
    "TP2 SP": Layout(2, ("tensor=2", "sequence=true")),
    "PP2 VP3": Layout(2, ("pipeline=2", "virtual=3")),
    "CP2": Layout(2, ("context=2",)),
}


class Chain(NamedTuple):
    """All stages in their order, each from an export of the same chain.

    Attributes:
        usual: layout of a stage.
        others: layouts of the stages that have another.
        resumed: layout in which :data:`RESUMED` is resumed; empty where it is not.
    """

    usual: str
    others: dict[str, str]
    resumed: str = ""


CHAINS = {
    "1-rank": Chain("DP1", {"sft_subset": "DP1, no overlap"}),
    # Images are shared over tensor- and over context-parallel ranks, and stay on the first of a pipeline.
    "2-ranks": Chain(
        "DP2",
        {"realign": "TP2 SP", "cpt_stage2": "CP2", "sft": "DP2, no overlap", "sft_long": "PP2 VP3"},
        "PP2 VP3",
    ),
}
"""By the name of the directory that a chain's model, data and outputs lie in."""
RESUMED = "cpt_stage1"
"""The stage that is stopped before its last step and resumed: here everything trains."""

LIMIT_S = 600.0
"""Of one command; ranks that wait for each other for ever must end too."""
_STOP_S = 45.0
"""Between the request to stop and the end by force; a launcher gives its ranks 30 s of that."""
_OTHERS = ("SLURM_", "RANK", "LOCAL_", "GROUP_", "ROLE_", "WORLD_SIZE", "MASTER_", "TORCHELASTIC_", "PYTHON", "GIT_")
"""Beginnings of variables that would place a run in somebody else's job, or load other code."""


@dataclass(frozen=True)
class Run:
    """One stage of a chain, in one layout, and in one in which it is resumed, if it is."""

    chain: str
    stage: str
    layout: str
    resumed: str = ""

    @property
    def ranks(self) -> int:
        return LAYOUTS[self.layout].ranks

    @property
    def output(self) -> Path:
        """Relative to the directory of the commit's runs."""
        return Path(self.chain) / self.stage


def runs_of(stages: Iterable[str]) -> dict[str, list[Run]]:
    """What is run, by chain and in order; chains do not need each other."""
    return {
        name: [
            Run(name, stage, chain.others.get(stage, chain.usual), chain.resumed if stage == RESUMED else "")
            for stage in stages
        ]
        for name, chain in CHAINS.items()
    }


class Runner:
    """Runs commands, also from several threads, each with its output in a file; :meth:`stop` ends them all."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._lock = Lock()

    def run(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Run a command to its end. Raises ConfigError with the end of its output if it fails."""
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            with self._lock:
                if self._stopped:
                    raise ConfigError(f"{name} was not started: another command had failed.")
                # In a session of its own: Ctrl-C reaches this program, which then stops what it has started.
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=environment["PYTHONPATH"],
                    env=environment,
                    start_new_session=True,
                )
                self._running.add(process)
            try:
                code: int | None = process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                code = None
                _end([process])
            with self._lock:
                self._running.discard(process)
        if code != 0:
            # The launcher's own summary, which comes last, does not say why.
            said = log.read_text(encoding="utf-8", errors="replace").partition("elastic/multiprocessing")[0]
            how = f"took longer than {LIMIT_S:.0f} s" if code is None else f"ended with exit code {code}"
            raise ConfigError(f"{name} {how}: {shlex.join(command)}", said[-6000:].strip())

    def stop(self) -> None:
        """End what runs, and start nothing more."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        _end(running)


def _end(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    processes = list(processes)
    for process in processes:
        process.terminate()
    ends = time.monotonic() + _STOP_S
    for process in processes:
        try:
            process.wait(max(ends - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def at_once(runner: Runner, tasks: Iterable[Callable[[], None]], workers: int = 2) -> None:
    """Run tasks side by side; the first that fails, or Ctrl-C, stops all."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = next((future for future in futures if future in done and future.exception()), None)
            if failed is not None:
                failed.result()
        except BaseException:
            for future in futures:
                future.cancel()
            runner.stop()
            raise


def run_environment(checkout: Path, root: Path) -> dict[str, str]:
    """Environment in which a commit's code runs, the same numbers every time, with the quickstart in ``root``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)}
    return {
        **kept,
        "PYTHONPATH": str(checkout),
        "PYTHONHASHSEED": "0",
        "QUICKSTART": str(root),
        # A sum that several threads share is added up in another order.
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        # Packing plans of corpora that cannot be written to would lie there.
        "XDG_CACHE_HOME": str(root / "cache"),
    }


def quickstart_commands(checkout: Path, root: Path) -> list[list[str]]:
    """The commands of a commit's quickstart, in order. Raises ConfigError where it has none, or runs other code."""
    script = checkout / "examples" / "quickstart" / "run.py"
    environment = run_environment(checkout, root)
    found = _asked(["-c", "import megatron_apriel; print(megatron_apriel.__file__)"], environment).strip()
    if not Path(found).is_relative_to(checkout):
        raise ConfigError(
            f"{sys.executable} imports megatron_apriel from {found}, not from {checkout}.",
            "Another commit than the one that was asked for would be measured.",
            "Use an interpreter in which PYTHONPATH comes before the installed package.",
        )
    listing = _asked([str(script), "--list", "--scale", "0.01", "--output", str(root)], environment)
    # A list for people says ${QUICKSTART} where that variable gave the directory.
    return [
        [string.Template(word).safe_substitute(environment) for word in shlex.split(line)]
        for line in listing.splitlines()
    ]


def _asked(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=environment["PYTHONPATH"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ConfigError(f"{shlex.join(arguments)} ended with exit code {done.returncode}.", done.stderr[-6000:])
    return done.stdout


def stage_files(commands: Iterable[Sequence[str]]) -> dict[str, Path]:
    """The stages' files by name, in the order in which they are trained."""
    files = [Path(command[command.index("megatron_apriel.train") + 1]) for command in commands if _trains(command)]
    return {file.stem: file for file in files}


def _trains(command: Sequence[str]) -> bool:
    return "megatron_apriel.train" in command


def prepare(commands: Iterable[Sequence[str]], checkout: Path, root: Path, runner: Runner) -> None:
    """Make the model and the data in ``root``: the quickstart's commands before its first stage.

    Those of one tool in a row do not need each other and run two at a time.
    """
    root.mkdir()
    environment = run_environment(checkout, root)
    before_training = itertools.takewhile(lambda command: not _trains(command), commands)
    for tool, group in itertools.groupby(before_training, key=lambda command: command[1]):
        name = Path(tool).stem
        tasks = [partial(runner.run, f"{name}-{number}", command, environment) for number, command in enumerate(group)]
        at_once(runner, tasks)


def train_all(
    files: Mapping[str, Path], given: Path, checkout: Path, root: Path, runner: Runner, say: Callable[[str], None]
) -> None:
    """Run every stage at one commit.

    Args:
        files: the stages' files in this checkout, in order.
        given: model and data, which are copied.
        checkout: the code to run.
        root: directory to be made; a run's output is ``root / run.output``.
        runner: runs the commands.
        say: called for every run that is done.
    """
    # Not where they were made: a corpus keeps packing plans, which each commit is to make for itself.
    shutil.copytree(given, root / "given")
    environments = {name: run_environment(checkout, root / name) for name in CHAINS}
    for name in CHAINS:
        (root / name).mkdir()
        for entry in (root / "given").iterdir():
            (root / name / entry.name).symlink_to(entry)
    at_once(
        runner,
        [
            partial(_train_chain, runs, files, root, environments[name], runner, say)
            for name, runs in runs_of(list(files)).items()
        ],
    )


def _train_chain(
    runs: Iterable[Run],
    files: Mapping[str, Path],
    root: Path,
    environment: Mapping[str, str],
    runner: Runner,
    say: Callable[[str], None],
) -> None:
    for run in runs:
        started, name = time.monotonic(), f"{root.name} {run.stage} {run.layout}"
        # A stage that is resumed keeps the checkpoint before its last.
        command = partial(training, files[run.stage], root / run.output, STEPS - 1 if run.resumed else STEPS)
        runner.run(name, command(run.layout), environment)
        if run.resumed:
            _forget_the_end(root / run.output)
            runner.run(f"{root.name} {run.stage} resumed {run.resumed}", command(run.resumed), environment)
            _check_resumed(root / run.output)
        say(f"{name}: {time.monotonic() - started:.0f} s")


def _forget_the_end(output: Path) -> None:
    """Leave a run as if it had been stopped before its last step."""
    shutil.rmtree(max((output / "checkpoints").glob("step_*")))


def _check_resumed(output: Path) -> None:
    if all(record["kind"] != "resumed" for record in read_records(output / "metrics.jsonl")):
        raise ConfigError(f"the second run in {output} did not resume.", "Its metrics.jsonl has no record of it.")


def training(file: Path, output: Path, save_every: int, layout: str) -> list[str]:
    """The command that trains a stage in miniature, or resumes it in any layout."""
    stage = yaml.safe_load(file.read_text(encoding="utf-8"))
    batch = max(stage["batch_tokens"], 2 * stage["sequence_length"], SMALLEST_BATCH)
    ranks, parallel = LAYOUTS[layout]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [
        sys.executable,
        *(launcher if ranks > 1 else []),
        *("-m", "megatron_apriel.train", str(file)),
        # The quickstart starts some stages from averages. Those are made without training.
        f"init_from={stage['init_from'].replace('/average', '/final')}",
        f"output={output}",
        f"batch_tokens={batch}",
        f"tokens={STEPS * batch}",
        *(f"parallel.{setting}" for setting in parallel),
        f"checkpoint.every={save_every}",
        "checkpoint.keep=all",
        "validation.sequences=2",
        "logging.every=1",
        "logging.tensorboard=false",
    ]
