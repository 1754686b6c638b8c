"""How many questions a second are asked of a server that answers at once: ours beside evalscope's own.

Both ask the same questions, as many at a time, of the same server, which takes the time from the first question to the
last. They take turns, several rounds over; only their ratio within one run means something. evalscope runs in the
environment of its own that ``make scorers`` makes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks import answering_server
from benchmarks.options import add_output_options
from benchmarks.report import Page, Record, markdown, write
from benchmarks.versions import facts, processor
from megatron_apriel.command_line import CommandLine, above_zero
from megatron_apriel.errors import ExitCode, run_command
from megatron_apriel.generate.asking import Asked, ask_models
from megatron_apriel.generate.conversation import Question, Sampling, Turn
from megatron_apriel.generate.server import ServerModel
from megatron_apriel.grading.scorer_environments import plain_environment, scorer_python

EXAMPLES = """\
examples:
  # a minute or two
  python benchmarks/asking.py

Exit code: 0 if both asked every question.
"""
HEADINGS = ("subject", "questions", "at once", "seconds", "questions a second", "times evalscope's")
OURS, EVALSCOPE = "ours", "evalscope 1.14.1"
_BY_EVALSCOPE = """
import sys
from evalscope import TaskConfig, run_task
address, folder, at_once = sys.argv[1:]
run_task(TaskConfig(
    model="answering", api_url=address, api_key="none", eval_type="openai_api", datasets=["general_qa"],
    dataset_args={"general_qa": {"local_path": folder, "subset_list": ["questions"]}}, work_dir=folder + "/work",
    eval_batch_size=int(at_once), generation_config={"max_tokens": 32, "temperature": 0.6},
))
"""


@contextmanager
def answering() -> Iterator[str]:
    """The address of a server that answers at once."""
    command = [sys.executable, str(Path(answering_server.__file__))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.stdin.close()


def ask_ours(address: str, texts: Sequence[str], at_once: int) -> None:
    """Ask as an evaluation does; an answer that does not come is an error."""
    asked: list[Asked] = []
    sampling = Sampling(max_tokens=32, temperature=0.6)
    jobs = [(text, lambda text=text: Question((Turn("user", (text,)),), sampling=sampling)) for text in texts]
    with ServerModel(f"{address}/v1") as model:
        ask_models([model], jobs, asked.append, at_once=at_once)  # type: ignore[arg-type]
    assert all(one.answer is not None for one in asked)


def ask_by_evalscope(address: str, texts: Sequence[str], at_once: int) -> None:
    """Have evalscope ask. Raises CalledProcessError if it fails."""
    httpx.get(f"{address}/v1/models")  # begins the count, as ours does
    with tempfile.TemporaryDirectory() as folder:
        lines = "".join(f"{json.dumps({'query': text, 'response': 'A'})}\n" for text in texts)
        Path(folder, "questions.jsonl").write_text(lines, encoding="utf-8")
        command = [str(scorer_python("evalscope")), "-I", "-c", _BY_EVALSCOPE, f"{address}/v1", folder, str(at_once)]
        own = plain_environment() | {"HOME": folder, "HF_HUB_OFFLINE": "1"}
        subprocess.run(command, check=True, capture_output=True, text=True, env=own, cwd=folder)


def rows(record: Record) -> list[tuple[str, ...]]:
    """One row a subject."""
    rates = {name: record["questions"] / statistics.median(seconds) for name, seconds in record["seconds"].items()}
    return [
        (name, f"{record['questions']:,}", str(record["at_once"]), f"{statistics.median(seconds):.2f}",
         f"{rates[name]:.0f}", f"{rates[name] / rates[EVALSCOPE]:.1f}")
        for name, seconds in record["seconds"].items()
    ]  # fmt: skip


def page(record: Record) -> Page:
    """What this benchmark says of a record."""
    return Page(
        title="Asking a server that answers at once",
        question="How many questions a second does an evaluation ask, beside evalscope?",
        configuration=f"{record['rounds']} rounds by turns, medians; the server's own clock from the first question to "
        "the last",
        measured=list(record["seconds"]),
        body=markdown(HEADINGS, rows(record)),
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = CommandLine(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--questions", type=above_zero, default=1000, metavar="N", help="(%(default)s)")
    parser.add_argument("--at-once", type=above_zero, default=32, metavar="N", help="(%(default)s)")
    parser.add_argument("--rounds", type=above_zero, default=3, metavar="N", help="turns of each (%(default)s)")
    add_output_options(parser, "asking")
    arguments: argparse.Namespace = parser.parse_args(argv)
    texts = [f"What is {number} and {number}?" for number in range(arguments.questions)]
    begun = datetime.datetime.now(datetime.UTC)
    seconds: dict[str, list[float]] = {OURS: [], EVALSCOPE: []}
    whole = True
    with answering() as address:
        for _ in range(arguments.rounds):
            for name, ask in ((OURS, ask_ours), (EVALSCOPE, ask_by_evalscope)):
                ask(address, texts, arguments.at_once)
                times = httpx.get(f"{address}/times").json()
                whole = whole and times["questions"] == len(texts)
                seconds[name].append(times["seconds"])
    record = {
        **facts("asking", arguments.commit, {"device": "CPU"}, begun), "hardware": processor(),
        "questions": len(texts), "at_once": arguments.at_once, "rounds": arguments.rounds, "seconds": seconds,
    }  # fmt: skip
    table = Table(*HEADINGS)
    for cells in rows(record):
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(f"{write(arguments.output, record, page(record), begun)}.json and .md")
    return ExitCode.OK if whole else ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(run_command(main))
