#!/usr/bin/env python
"""Serve a model in OpenAI's protocol, by a program that others wrote, or check that it answers as transformers does."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from megatron_apriel.command_line import CommandLine, above_zero, count_above_zero
from megatron_apriel.errors import ExitCode, run_command
from megatron_apriel.generate.engines.comparison import (
    ROUNDING,
    Case,
    compare,
    reference_cases,
    verdict_table,
)
from megatron_apriel.generate.engines.engine import Engine, Launch, Service
from megatron_apriel.generate.engines.running import check_port, free_port
from megatron_apriel.generate.engines.serving import READY_SECONDS, ready_address, service_of, spelled, started
from megatron_apriel.generate.engines.table import ENGINES
from megatron_apriel.outputs import terminating_signals_raise
from megatron_apriel.progress import progress
from megatron_apriel.tables import standard_output
from megatron_apriel.terminal import note, say

EXAMPLES = """
examples:
  # The result of a run behind vLLM (make vllm installs it once), on the GPUs or the CPU of this machine:
  python tools/serve.py runs/sft/final

  # What would be started, without starting it:
  python tools/serve.py runs/sft/final --dry-run

  # Do vLLM's answers, to texts and images, equal those of transformers?
  python tools/serve.py runs/quickstart/sft/final --check

  # Two GPUs, all interfaces, and options of vLLM's own behind --:
  python tools/serve.py runs/sft/final --gpus 2 --host 0.0.0.0 -- --quantization fp8 --api-key-file key.txt

engines:
{engines}

It serves until Ctrl-C or a signal, which is passed on to the engine. Exit code 0: the engine was ended by SIGTERM or
SIGHUP, or --check found no difference; 1: it failed, or --check found one beyond rounding; 130: Ctrl-C; 143 or 129:
SIGTERM or SIGHUP ended --check; 76: the port is taken.
"""


def _parser() -> argparse.ArgumentParser:
    engines = "\n".join(f"  {name:<14}{engine.summary}; {engine.setup}" for name, engine in ENGINES.items())
    parser = CommandLine(description=__doc__, epilog=EXAMPLES.format(engines=engines))
    parser.add_argument("model", type=Path, help="directory of the model")
    parser.add_argument("--engine", choices=list(ENGINES), default="vllm", help="what serves (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="compare greedy answers with transformers, and end")
    parser.add_argument("--dry-run", action="store_true", help="print what would be started, and end")
    where = parser.add_argument_group("where")
    where.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine)")
    where.add_argument("--port", type=above_zero, help="default: 8000; with --check a free one")
    where.add_argument("--served-name", metavar="NAME", help="of the model, for clients (default: the directory's)")
    how = parser.add_argument_group("how")
    how.add_argument("--gpus", type=int, metavar="N", help="divide the model over N GPUs; 0: on the CPU (default: 1)")
    how.add_argument(
        "--dtype", choices=sorted(ROUNDING), help="to compute in (default: bfloat16 on GPUs, float32 on a CPU)"
    )
    how.add_argument("--context", type=count_above_zero, metavar="TOKENS", help="most of a conversation, as 32K")
    how.add_argument(
        "--ready-seconds", type=above_zero, default=READY_SECONDS, help="how long it may load (default: %(default)s)"
    )
    parser.add_argument(
        "--rounding", type=float, metavar="GAP", help="--check: difference of log-probabilities that is no difference"
    )
    return parser


def commands(engine: Engine, service: Service) -> list[Launch]:
    """All programs, in their order; the last one serves."""
    return [*engine.steps(service), engine.launch(service)]


def greeting(engine: Engine, service: Service) -> list[str]:
    """What to do now that it answers."""
    name, address = engine.served_name(service), service.address
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "Why is the sky blue?"}]})
    return [
        f"The model {service.name} answers at {address}. Try it:",
        f"  python tools/chat.py {address} --served-name {shlex.quote(name)}",
        f"  curl {address}/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(body)}",
        f'  openai.OpenAI(base_url="{address}", api_key="none"), with model="{name}"',
        "Ctrl-C ends it.",
    ]


def serve(engine: Engine, service: Service, seconds: float) -> int:
    """Serve until a signal; the exit code."""
    with started(engine, service) as program:
        if program.wait_until_ready(ready_address(engine, service), seconds):
            say(*greeting(engine, service))
        program.wait()
        return ExitCode.INTERRUPTED if program.signalled is signal.SIGINT else ExitCode.OK


def check(engine: Engine, service: Service, rounding: float, seconds: float) -> int:
    """Compare its answers with those of transformers; the exit code."""
    with terminating_signals_raise(), tempfile.TemporaryDirectory() as folder:
        note(f"loading transformers for the answers to compare with, in {service.dtype}")
        cases = _reference(service)
        note(f"starting {engine.name}")
        with started(engine, service, Path(folder) / "engine.log", passes_signals=False) as program:
            program.wait_until_ready(ready_address(engine, service), seconds)
            verdicts = []
            with progress(f"asking {engine.name}", len(cases), "question") as step:
                for case in cases:
                    verdicts.append(compare(case, engine.greedy(service, case.asked), rounding))
                    step()
    title = f"greedy answers of {engine.name}, served, and of transformers in this process, {service.dtype}"
    standard_output(110).print(verdict_table(verdicts, title))
    differ = sum(not one.alike for one in verdicts)
    if differ:
        say(f"{differ} of {len(verdicts)} answers differ by more than rounding ({rounding:g}).")
        return ExitCode.FAILED
    say(f"All {len(verdicts)} answers are the same, but for rounding (up to {rounding:g} in log-probability).")
    return ExitCode.OK


def _reference(service: Service) -> list[Case]:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from megatron_apriel.generate.transformers_model import TransformersModel

    device = "cuda" if service.gpus else "cpu"
    model = TransformersModel(service.directory, device=device, dtype=service.dtype)
    with model:
        return reference_cases(model, service.architecture)


def main(argv: list[str] | None = None) -> int:
    """Serve, check, or say what would be done."""
    given = sys.argv[1:] if argv is None else argv
    place = given.index("--") if "--" in given else len(given)
    arguments = _parser().parse_args(given[:place])
    engine = ENGINES[arguments.engine]
    service, remarks = service_of(
        arguments.model, gpus=arguments.gpus, dtype=arguments.dtype, context=arguments.context,
        name=arguments.served_name or "", host=arguments.host, port=arguments.port or 8000,
        further=given[place + 1 :],
    )  # fmt: skip
    launches = commands(engine, service)
    for remark in (*remarks, *(remark for launch in launches for remark in launch.remarks)):
        note(f"note: {remark}")
    if arguments.dry_run:
        say(*map(spelled, launches))
        return ExitCode.OK
    engine.check(service)
    if arguments.check and arguments.port is None:
        service = replace(service, port=free_port(service.host))
    check_port(service.host, service.port)
    if not arguments.check:
        return serve(engine, service, arguments.ready_seconds)
    rounding = ROUNDING[service.dtype] if arguments.rounding is None else arguments.rounding
    return check(engine, service, rounding, arguments.ready_seconds)


if __name__ == "__main__":
    sys.exit(run_command(main))
