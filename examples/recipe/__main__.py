"""``examples/submit_all.sh``: the whole recipe as Slurm jobs, each of which waits for those before it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from examples.recipe import scheduler
from examples.recipe.chain import RELEASE, Step, missing, of_environment, runs_of_environment
from examples.recipe.options import ALL, STAGES, choice, options_for_tools, scheduler_options, settings
from examples.recipe.record import Record, logs_below, submitting
from examples.recipe.stage_file import places
from examples.recipe.standing import Standing
from examples.recipe.submitting import Request, dry_run, submit
from megatron_apriel.command_line import CommandLine
from megatron_apriel.errors import ConfigError, ExitCode, ServerError, ended_by, run_command
from megatron_apriel.terminal import note, say

DESCRIPTION = """\
The whole recipe: every stage as a Slurm job that waits for the one before, and between them the surgery and the
averages as jobs without GPUs. What is there already is left out, and so are jobs that are in the queue: after a failure
the same command submits the rest. A second copy of a chain that is queued or running is refused.
"""
EXAMPLES = """\
examples:
  the commands that would be given, and nothing else:
      examples/submit_all.sh --nodes 80 --dry-run
  everything, on 80 nodes with eight GPUs each; prints the jobs' numbers:
      examples/submit_all.sh --nodes 80 --partition gpu --account lab --time 2-00:00:00
  nodes with four GPUs; the short stages on fewer of them, the jobs without GPUs elsewhere:
      examples/submit_all.sh --nodes 80 --nodes realign:8 --tasks-per-node 4 --gpus-per-node 4 --partition tools:cpu
  settings for all stages, and for one:
      examples/submit_all.sh --nodes 8 --set checkpoint.every=200 --set cpt_stage2:tokens=1B
  where the chain stands; then stop a stage with a save, and later submit what is missing:
      examples/submit_all.sh --status
      scancel --signal=INT JOB
      examples/submit_all.sh --nodes 80
  without Slurm, one after the other on this machine:
      examples/submit_all.sh --local

A value may begin with where it holds: `stages:`, `tools:` (surgery and averages), or the name of one step and a colon.
The narrower one wins; --set and --sbatch add up.

Runs, corpora and models lie in RUN_ROOT, DATA_ROOT and MODEL_ROOT (runs, data, models in the project's directory); the
recipe begins with SOURCE_MODEL (MODEL_ROOT/pixtral-12b). All logs go to RUN_ROOT/logs. SBATCH_PARTITION and the like
work as with sbatch; CPU_SBATCH_ARGS holds further options for the tools' jobs.
"""
OPTIONS = {
    "--nodes": ("--nodes", 1, "nodes of each stage"),
    "--tasks-per-node": ("--ntasks-per-node", 1, "ranks on each node; the scripts say 8"),
    "--gpus-per-node": ("--gpus-per-node", 0, "GPUs of each node; the scripts say 8, and 0 is for nodes without"),
    "--partition": ("--partition", None, "of the jobs"),
    "--account": ("--account", None, "of the jobs"),
    "--qos": ("--qos", None, "of the jobs"),
    "--time": ("--time", None, "limit of the jobs"),
}
"""By name: how sbatch calls it, the least number where it is one, and what it is."""


def main(argv: list[str] | None = None) -> int:
    try:
        return _do(argv)
    except ConfigError as error:
        note(*f"ConfigError: {error}".split("\n"))
        return ExitCode.USAGE  # as of the scripts, whose start this is


def _do(argv: list[str] | None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    runs, steps = runs_of_environment(), of_environment()
    given = {option: getattr(arguments, option[2:].replace("-", "_")) for option in (*OPTIONS, "--sbatch")}
    if arguments.status:
        if arguments.dry_run or arguments.local or arguments.set or any(given.values()):
            parser.error("--status only looks: give it nothing else")
        return _show(steps, runs)
    if arguments.local and any(given.values()):
        parser.error(f"{', '.join(option for option in given if given[option])} goes with Slurm, not with --local")
    request = Request(
        tuple(
            choice(option, given[option], steps, STAGES if least is not None else ALL, least, name)
            for option, (name, least, _) in OPTIONS.items()
        ),
        settings(arguments.set, steps),
        scheduler_options(given["--sbatch"], steps),
        options_for_tools(os.environ.get("CPU_SBATCH_ARGS", "")),
    )
    _check(steps, request, needs_slurm=not arguments.local, only_print=arguments.dry_run)
    if arguments.local:
        _run_here(steps, request, arguments.dry_run)
    elif arguments.dry_run:
        record = Record(runs)
        dry_run(Standing(steps, runs, record, _jobs(record) if scheduler.is_here() else {}), request)
    else:
        with submitting(runs) as record:
            submit(Standing(steps, runs, record, _jobs(record)), request)
    say(f"The released model will be {steps[RELEASE].product}.")
    return 0


def _parser() -> CommandLine:
    parser = CommandLine(prog="examples/submit_all.sh", description=DESCRIPTION, epilog=EXAMPLES, allow_abbrev=False)
    jobs = parser.add_argument_group("the jobs, as sbatch knows them")
    for option, (name, least, text) in OPTIONS.items():
        value = "[STEP:]VALUE" if least is None else "[STAGE:]N"
        jobs.add_argument(*dict.fromkeys((option, name)), action="append", default=[], metavar=value, help=text)
    jobs.add_argument(
        "--sbatch", action="append", default=[], metavar="[STEP:]OPTION", help="a further option of sbatch, one word"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="[STAGE:]KEY=VALUE", help="a setting of all stages, or of one"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    parser.add_argument("--status", action="store_true", help="show jobs, why they wait, steps reached, products")
    parser.add_argument("--local", action="store_true", help="one after the other on this machine, without Slurm")
    return parser


def _check(steps: Mapping[str, Step], request: Request, needs_slurm: bool, only_print: bool) -> None:
    """Raise ConfigError for what can be known before the first job."""
    wanted = {step.name: step for step in missing(steps)}
    if needs_slurm and not only_print and not scheduler.is_here():
        raise ConfigError(
            "sbatch is not found.",
            "Stages are submitted as Slurm jobs.",
            "Add --local to run them here, one after the other.",
        )
    for step in wanted.values():
        if step.given is not None and not step.given.exists() and not only_print:
            raise ConfigError(
                f"the model to begin with, {step.given}, does not exist.",
                fix="Set SOURCE_MODEL to a Hugging Face directory of Pixtral-12B.",
            )
    # A stage whose settings cannot be read should not wait for days first.
    places([(step.name, request.settings.of(step)) for step in wanted.values() if step.stage])


def _jobs(record: Record) -> dict[str, scheduler.Job] | None:
    """What Slurm knows of the jobs that were submitted; None, with a remark, where it does not answer."""
    try:
        return scheduler.look_up(job.job for job in record.latest.values())
    except (ServerError, ConfigError) as error:
        note(*str(error).split("\n"))
        return None


def _show(steps: Mapping[str, Step], runs: Path) -> int:
    standing = Standing(steps, runs, record := Record(runs), _jobs(record))
    say(f"runs: {runs.absolute()}", *standing.table(), f"logs: {logs_below(runs)}")
    if failed := [*standing.failed()]:
        say(*failed)
    if standing.jobs is None:
        say("whether jobs are queued or run is not known: Slurm does not answer")
    elif not standing.missing:
        say(f"complete: {steps[RELEASE].product}")
    elif left := [step.name for step in standing.missing if step.name not in standing.live]:
        say(f"neither there nor in the queue: {', '.join(left)}; the same command that submitted the chain adds them")
    return 0


def _run_here(steps: Mapping[str, Step], request: Request, only_print: bool) -> None:
    """Run what is missing, one after the other. Ctrl-C is the running step's, which saves.

    Raises:
        ConfigError: a step ended without its product.
    """
    wanted = {step.name for step in missing(steps)}
    for name, step in steps.items():
        if name not in wanted:
            say(f"{name:18} {step.product} is there already" if step.done else f"{name:18} is not needed")
            continue
        command = ["bash", *step.command, *request.settings.of(step)]
        say(f"{name:18} {shlex.join(command)}")
        if only_print:
            continue
        code, is_told = _step_here(command)
        if code in (ExitCode.INTERRUPTED, -signal.SIGINT):
            raise KeyboardInterrupt
        if is_told:
            note(f"{name} was stopped by SIGTERM, with exit code {code}; the same command resumes at this step")
            raise SystemExit(ended_by(signal.SIGTERM))
        if code or not step.done:
            raise ConfigError(
                f"{name} ended with exit code {code}" + ("." if code else f", but {step.product} is not there."),
                "Its message stands above.",
                "The same command resumes at this step.",
            )


def _step_here(command: Sequence[str]) -> tuple[int, bool]:
    """Run a step's script to its end; its exit code, and whether SIGTERM came, which is passed on to it.

    Ctrl-C reaches it by itself.
    """
    told: list[int] = []
    script: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        if script is not None:
            script.send_signal(number)

    # Handlers, since a signal that is ignored would be ignored by the step, too.
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda number, frame: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
    }
    try:
        script = subprocess.Popen(command)
        if told:
            script.terminate()
        return script.wait(), bool(told)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(run_command(main))
