"""What a run on several GPUs does when one of its ranks dies: how long until it ends, what the next start loses.

The trainer's command line trains a slice of the model with random weights. Once its first checkpoint is there, the last
rank is killed with SIGKILL in the middle of a step: under ``torchrun``, which watches its ranks, and started bare, as
``srun`` starts them. The last command is then started again and must resume from that checkpoint. How long the end
takes does not depend on the model, and a small one is saved and loaded sooner.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.logs import log_folder
from benchmarks.measure import environment
from benchmarks.options import add_output_options
from benchmarks.processes import ROOT, places
from benchmarks.report import Page, Record, markdown, write
from benchmarks.spread_cli import print_table
from benchmarks.versions import facts
from benchmarks.whole_run import STAGE, Sizes, make, paths
from megatron_apriel.command_line import CommandLine, chosen
from megatron_apriel.errors import ConfigError, ExitCode, run_command
from megatron_apriel.quantities import counted

EXAMPLES = """\
examples:
  # data-parallel over all GPUs of this host
  python benchmarks/killed_rank.py

  # tensor-parallel, where every product waits for the dead rank
  python benchmarks/killed_rank.py --parallel '{tensor: 2, sequence: true}'
"""
STEPS = 400
"""Of the run, which never reaches its end."""
PATIENCE = 300
"""Seconds to wait for what a run writes."""
LAUNCHERS = ("torchrun", "bare")
SIZES = {
    "apriel-15b": Sizes("apriel-15b", 16384, (1024, 768), 60, 3000),
    "small": Sizes("small", 1024, (96, 64), 60, 200),
}
HEADINGS = ("started by", "killed at step", "ended after, s", "exit codes", "what the rest said",
            "checkpoint at step", "resumed at step", "steps lost")  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs to use (default: all of this host)")
    parser.add_argument("--launchers", default=",".join(LAUNCHERS), metavar="A,B", help="default: %(default)s")
    parser.add_argument("--model", choices=SIZES, default="small", help="of full width, or small (%(default)s)")
    parser.add_argument("--layers", type=int, default=2, metavar="N", help="decoder layers (%(default)s)")
    parser.add_argument("--parallel", default="{}", metavar="YAML", help="parallel section (%(default)s)")
    parser.add_argument("--limit", type=float, default=60, metavar="SECONDS",
                        help="to wait for the end after the kill (%(default)g)")  # fmt: skip
    parser.add_argument("--directory", type=Path, metavar="DIR", help="for model, data and checkpoints; removed after")
    add_output_options(parser, "killed_rank")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # on the CPU too
    return parser


class Run:
    """The processes of a run that is going to lose its last rank.

    Args:
        stage: its YAML file.
        overrides: settings that replace the file's.
        ranks: how many.
        launcher: ``torchrun``, or ``bare``: one process a rank, found by the variables that ``srun`` sets.
        logs: directory for the output of each process, made here.
    """

    def __init__(self, stage: Path, overrides: Sequence[str], ranks: int, launcher: str, logs: Path) -> None:
        logs.mkdir()
        command = ["-m", "megatron_apriel.train", str(stage), *overrides]
        if launcher == "torchrun":
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
            started: list[tuple[list[str], dict[str, str]]] = [([*torchrun, *command], {})]
        else:
            started = [(command, place) for place in places(ranks)]
        self._logs, self._processes = [], []
        for number, (arguments, place) in enumerate(started):
            log = logs / f"{number}.log"
            with log.open("w", encoding="utf-8") as output:
                self._processes.append(
                    subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=paths() | place, stdout=output,
                                     stderr=subprocess.STDOUT)
                )  # fmt: skip
            self._logs.append(log)

    def kill_last_rank(self) -> None:
        """SIGKILL to the process of the last rank, wherever its launcher has put it."""
        ids = [process.pid for process in self._processes]
        if len(ids) == 1:
            ids = [int(number) for number in Path(f"/proc/{ids[0]}/task/{ids[0]}/children").read_text().split()]
        os.kill(ids[-1], signal.SIGKILL)

    def ended(self) -> bool:
        return all(process.poll() is not None for process in self._processes)

    def stop(self) -> None:
        """End what has not ended by itself."""
        for process in self._processes:
            process.terminate()
        try:
            for process in self._processes:
                process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            for process in self._processes:
                process.kill()
                process.wait()

    @property
    def exit_codes(self) -> str:
        return ", ".join("runs on" if code is None else str(code) for code in (p.poll() for p in self._processes))

    def said_after(self, sizes: Sequence[int]) -> str:
        """What the processes wrote behind the given sizes of the logs: who is gone, or else the first error."""
        lines = [
            line.partition("]: ")[2] if line.startswith("[rank") else line
            for log, size in zip(self._logs, sizes, strict=True)
            for line in log.read_bytes()[size:].decode("utf-8", errors="replace").splitlines()
        ]
        gone = [line for line in lines if " is gone; " in line]
        errors = [line for line in lines if re.match(r"[\w.]+Error: ", line)]
        return (gone + errors + ["nothing"])[0][:160]

    def sizes(self) -> list[int]:
        return [log.stat().st_size for log in self._logs]

    def output(self) -> str:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace")[-3000:] for log in self._logs)


def _records(output: Path, kind: str) -> list[dict[str, Any]]:
    metrics = output / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def _wait_for(run: Run, output: Path, kind: str, step: int = 0, known: int = 0) -> int:
    """Until the run has written another record of a kind, of ``step`` or later; its step.

    Args:
        known: how many records of the kind were there before.

    Raises ConfigError with the end of its output if it ends first or takes too long.
    """
    until = time.monotonic() + PATIENCE
    while not (records := _records(output, kind)[known:]) or records[-1]["step"] < step:
        if run.ended() or time.monotonic() > until:
            raise ConfigError(f"the run wrote no {kind} (exit codes {run.exit_codes}).", run.output())
        time.sleep(0.05)
    return int(records[-1]["step"])


def lose_a_rank(
    stage: Path, output: Path, overrides: Sequence[str], ranks: int, launcher: str, limit: float, logs: Path
) -> dict[str, Any]:
    """Start the run, kill its last rank behind the first checkpoint, and wait for the end.

    Raises ConfigError with the end of its output if it did not train.
    """
    run = Run(stage, [f"output={output}", *overrides], ranks, launcher, logs / launcher)
    try:
        # The first checkpoint is written beside later steps, and only a whole one can be resumed.
        _wait_for(run, output, "checkpoint")
        _wait_for(run, output, "step", _records(output, "step")[-1]["step"] + 1)
        sizes = run.sizes()
        run.kill_last_rank()
        began = time.monotonic()
        while not run.ended() and time.monotonic() - began < limit:
            time.sleep(0.05)
        seconds, codes, said = time.monotonic() - began, run.exit_codes, run.said_after(sizes)
    finally:
        run.stop()
    reached, saved = (_records(output, kind)[-1]["step"] for kind in ("step", "checkpoint"))
    return {"launcher": launcher, "killed": reached, "seconds": seconds, "codes": codes, "said": said,
            "saved": saved, "resumed": None, "lost": reached - saved}  # fmt: skip


def resumed(stage: Path, output: Path, overrides: Sequence[str], ranks: int, logs: Path) -> int:
    """Start a run again that had lost a rank; the step from which it resumed and went on."""
    steps, before = len(_records(output, "step")), len(_records(output, "resumed"))
    run = Run(stage, [f"output={output}", *overrides], ranks, "torchrun", logs / "again")
    try:
        step = _wait_for(run, output, "resumed", known=before)
        _wait_for(run, output, "step", known=steps)
    finally:
        run.stop()
    return step


def row(found: dict[str, Any], limit: float) -> list[str]:
    """What was seen of a kill, in the columns of :data:`HEADINGS`."""
    ended = f"{found['seconds']:.1f}" if found["seconds"] < limit else f"not within {limit:g}"
    again = "-" if found["resumed"] is None else found["resumed"]
    values = [found["codes"], found["said"], found["saved"], again, found["lost"]]
    return [found["launcher"], str(found["killed"]), ended, *map(str, values)]


def page(record: Record) -> Page:
    """What this benchmark says of a record."""
    rows = [row(one, record["limit"]) for one in record["found"]]
    width = "at full width" if record["model"] == "apriel-15b" else "of a small model"
    model = f"{record['layers']} decoder layers {width}, random weights; parallel={record['parallel']}"
    return Page(
        title="A killed rank",
        question="How long does a run on several GPUs live on when a rank dies, and what does the next start lose?",
        configuration=model,
        measured=[f"{model}, {launcher}" for launcher, *_ in rows],
        body=markdown(HEADINGS, rows),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    arguments = _parser().parse_args(argv)
    present = torch.cuda.device_count()
    gpus = arguments.gpus or present
    if gpus < 2 or (gpus > present and not arguments.tiny):
        raise ConfigError(
            f"--gpus={gpus}, and this host shows {counted(present, 'CUDA device')}.", "At least two ranks, each on one."
        )
    launchers = chosen(arguments.launchers, LAUNCHERS, "--launchers")
    sizes = SIZES[arguments.model]
    begun = datetime.datetime.now(datetime.UTC)
    record = {
        **facts("killed_rank", arguments.commit, environment(), begun, gpus), "layers": arguments.layers,
        "model": arguments.model, "parallel": arguments.parallel, "limit": arguments.limit,
    }  # fmt: skip
    found: list[dict[str, Any]] = []
    with (
        log_folder() as logs,
        tempfile.TemporaryDirectory(prefix="killed_rank-", dir=arguments.directory) as scratch,
    ):
        root = Path(scratch)
        make(root, sizes, arguments.layers)
        stage, batch = root / "stage.yaml", gpus * sizes.length
        stage.write_text(STAGE.format(root=root, length=sizes.length, batch=batch, tokens=batch * STEPS), "utf-8")
        compute = "bf16" if torch.cuda.is_available() else "fp32"
        overrides = [f"parallel={arguments.parallel}", f"precision={{compute: {compute}}}"]
        for launcher in launchers:
            one = lose_a_rank(stage, root / launcher, overrides, gpus, launcher, arguments.limit, logs.folder)
            print(one, file=sys.stderr, flush=True)
            found.append(one)
            logs.wanted |= one["seconds"] >= arguments.limit  # its other ranks did not end
            # Kept after each: what is interrupted has cost device time all the same.
            path = write(arguments.output, record | {"found": found}, page(record | {"found": found}), begun)
        found[-1]["resumed"] = resumed(stage, root / launchers[-1], overrides, gpus, logs.folder)
    path = write(arguments.output, record | {"found": found}, page(record | {"found": found}), begun)
    print_table("a killed rank", HEADINGS, [row(one, arguments.limit) for one in found])
    print(f"{path}.json and .md")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(run_command(main))
