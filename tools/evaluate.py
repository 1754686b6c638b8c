#!/usr/bin/env python
"""Evaluate a model: load benchmarks, ask, score, and write a table beside the published row.

With --follow, evaluate the checkpoints of a run as they come, as its stage says; it runs beside the training, which it
never disturbs, or afterwards.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_apriel.command_line import CommandLine, above_zero, chosen, count_above_zero, not_negative
from megatron_apriel.errors import ConfigError, ExitCode, run_command
from megatron_apriel.generate.engines.table import ENGINES
from megatron_apriel.outputs import terminating_signals_raise
from megatron_apriel.quantities import counted
from megatron_apriel.terminal import note, say

if TYPE_CHECKING:
    from megatron_apriel.config.schema import StageConfig
    from megatron_apriel.evaluate.benchmarks import Benchmark
    from megatron_apriel.evaluate.models import Places
    from megatron_apriel.evaluate.running import Evaluation
    from megatron_apriel.evaluate.statistics import Interval
    from megatron_apriel.generate.answer import Model
    from megatron_apriel.train.metrics import Metrics

STEPS = ("load", "ask", "score", "report")
OF_STAGE = ("output", "model", "benchmarks", "data", "pictures", "samples", "limit", "runs", "temperature",
            "max_tokens", "seed", "name", "items_from", "baseline", "only_failed", "steps", "dry_run")  # fmt: skip
"""What --follow takes from a run, or has no use for."""
EXAMPLES = """\
examples:
  # a model behind two servers (vLLM, SGLang, any that speaks OpenAI's protocol), on IFBench and MMLU-Pro
  python tools/evaluate.py runs/evaluation --model http://node1:8000 http://node2:8000 \\
      --benchmarks ifbench,mmlu_pro --data data/benchmarks

  # a directory; the visual tasks are made from pictures that training never saw
  python tools/evaluate.py runs/evaluation --model runs/sft/final --benchmarks visual_tasks \\
      --pictures photographs/held_out --samples 200 --max-tokens 512

  # what that takes, at 500 tokens a second
  python tools/evaluate.py runs/evaluation --model runs/sft/final --benchmarks visual_tasks \\
      --pictures photographs/held_out --samples 200 --max-tokens 512 --dry-run --tokens-per-second 500

  # a directory, served by vLLM while it is asked
  python tools/evaluate.py runs/evaluation --model runs/sft/final --benchmarks mmlu_pro --engine vllm --gpus 2

  # on a node with the data, on one with the model, and on any
  python tools/evaluate.py runs/evaluation --model http://node1:8000 --benchmarks ifbench --steps load
  python tools/evaluate.py runs/evaluation --model http://node1:8000 --benchmarks ifbench --steps ask
  python tools/evaluate.py runs/evaluation --model http://node1:8000 --benchmarks ifbench --steps score,report

  # all text columns; judge and simulated user are models at addresses of their own
  python tools/evaluate.py runs/evaluation --model http://node1:8000 --benchmarks text10 \\
      --judge http://node3:8000 --user-model http://node4:8000

  # the checkpoints of a run while it trains on the other GPUs; the scores come into the run's own figures
  CUDA_VISIBLE_DEVICES=7 python tools/evaluate.py --follow runs/cpt_stage2 --engine vllm

  # what waits in two runs, one after another, and no longer
  python tools/evaluate.py --follow runs/cpt_stage2 runs/sft --once --engine vllm --judge http://node3:8000

  # what became better
  python tools/evaluate.py runs/evaluation --model http://node1:8000 --benchmarks ifbench --baseline runs/before

The same command goes on where it was stopped: answered items are not asked again, and scored ones are scored again only
if their answer, their item or their scorer changed. The result is report.md, report.json and report.html, which opens
from disk. tools/compare.py shows what became of the checkpoints of runs.

Exit code: 0 if everything was asked and scored, 1 if not, 2 for a wrong command line; with --follow also 75 where a
job's time is nearly over: start the same command again.
"""


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__, epilog=EXAMPLES, allow_abbrev=False)
    parser.add_argument(
        "output",
        metavar="OUT",
        type=Path,
        nargs="?",
        help="directory of the evaluation; one that exists is resumed (not with --follow)",
    )
    what = parser.add_argument_group("what is evaluated")
    what.add_argument("--model", nargs="+", default=[], metavar="DIR|URL",
                      help="Hugging Face directory, or addresses of servers that share the work")  # fmt: skip
    what.add_argument(
        "--benchmarks",
        default="",
        metavar="LIST",
        help="names, as ifbench,mmlu_pro,visual_tasks; text10 and vision13 are the paper's columns",
    )
    what.add_argument("--data", type=Path, default=Path("data/benchmarks"), metavar="DIR",
                      help="a folder for each benchmark in it (%(default)s)")  # fmt: skip
    what.add_argument("--pictures", metavar="DIR", help="raw pictures that the visual tasks are made from")
    what.add_argument("--samples", type=count_above_zero, metavar="N",
                      help="questions of the visual tasks (default: 1000, or as many as --items-from has)")  # fmt: skip
    what.add_argument("--limit", type=count_above_zero, metavar="N", help="items of each benchmark (default: all)")
    what.add_argument("--baseline", nargs="+", type=Path, default=[], metavar="OTHER_OUT",
                      help="earlier evaluations to compare with")  # fmt: skip
    what.add_argument("--items-from", type=Path, metavar="OTHER_OUT",
                      help="take the items that were loaded there, the same questions")  # fmt: skip
    how = parser.add_argument_group("how it is asked")
    how.add_argument("--runs", type=above_zero, metavar="K", help="of each benchmark (default: as published)")
    how.add_argument("--temperature", type=not_negative, default=0.6, metavar="X",
                     help="0 for the likeliest (%(default)s)")  # fmt: skip
    how.add_argument("--max-tokens", type=count_above_zero, metavar="N", help="(default: what the model allows)")
    how.add_argument("--at-once", type=above_zero, default=32, metavar="N", help="for each server (%(default)s)")
    how.add_argument("--seed", type=int, default=1, metavar="S", help="of the first run (%(default)s)")
    how.add_argument("--only-failed", action="store_true", help="ask again what failed")
    where = parser.add_argument_group("where models are")
    where.add_argument("--name", default="", metavar="NAME",
                       help="of the model in the table; with it, addresses may change from start to start")  # fmt: skip
    where.add_argument("--judge", metavar="URL", help="model for what is judged")
    where.add_argument("--served-name", default="", metavar="NAME", help="which model of a server that has several")
    where.add_argument("--key-variable", default="", metavar="NAME", help="environment variable with the server's key")
    where.add_argument("--judge-name", default="", metavar="NAME", help="as --served-name, of the judge")
    where.add_argument("--judge-key-variable", default="", metavar="NAME", help="as --key-variable, of the judge")
    where.add_argument("--user-model", metavar="URL", help="model that speaks for the simulated user of tau2_telecom")
    where.add_argument("--user-model-name", default="", metavar="NAME", help="as --served-name, of the user")
    where.add_argument("--user-model-key-variable", default="", metavar="NAME", help="as --key-variable, of the user")
    serving = parser.add_argument_group("a directory's model")
    serving.add_argument(
        "--engine",
        choices=list(ENGINES),
        default="",
        help="what serves it (default: vllm where there is a GPU and .venv-vllm; else transformers, in this process)",
    )
    serving.add_argument("--gpus", type=int, metavar="N", help="divide it over N GPUs; 0: on the CPU (default: 1)")
    serving.add_argument("--context", type=count_above_zero, metavar="TOKENS", help="most of a conversation, as 32K")
    serving.add_argument("--device", default="", help="for transformers (default: a GPU if any)")
    following = parser.add_argument_group("a run's checkpoints, as evaluate: in its stage says")
    following.add_argument("--follow", nargs="+", type=Path, metavar="RUN",
                           help="output directories of runs, waited for until they are complete")  # fmt: skip
    following.add_argument("--once", action="store_true", help="evaluate what is there now, and end")
    following.add_argument("--look-every", type=above_zero, default=30, metavar="SECONDS",
                           help="for new checkpoints (%(default)s)")  # fmt: skip
    steps = parser.add_argument_group("what is done")
    steps.add_argument("--steps", default=",".join(STEPS), metavar="LIST", help="some of %(default)s")
    steps.add_argument("--dry-run", action="store_true", help="say what would be asked, and write nothing")
    steps.add_argument("--tokens-per-second", type=count_above_zero, metavar="N",
                       help="--dry-run: of the answers, of all servers (default: 2000, for one H200)")  # fmt: skip
    steps.add_argument("--prompt-tokens-per-second", type=count_above_zero, metavar="N",
                       help="--dry-run: of the questions, of all servers (default: 12000, for one H200)")  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.follow:
        return _follow(parser, arguments)
    if not (arguments.output and arguments.model and arguments.benchmarks):
        parser.error("OUT, --model and --benchmarks are needed; or --follow RUN")
    # Only now: the imports take a while, and --help should not.
    from megatron_apriel.evaluate.benchmarks import check_other_models, chosen_benchmarks, left_out
    from megatron_apriel.evaluate.models import Places
    from megatron_apriel.evaluate.running import Evaluation, Settings, item_settings

    steps = chosen(arguments.steps, STEPS, "--steps")
    benchmarks = chosen_benchmarks(arguments.benchmarks)
    for missing in left_out(arguments.benchmarks):
        note(missing)
    settings = Settings(
        arguments.name or ", ".join(arguments.model), arguments.temperature, arguments.max_tokens, arguments.limit,
        arguments.seed, *item_settings(arguments.samples, arguments.pictures, arguments.items_from),
    )  # fmt: skip
    evaluation = Evaluation(arguments.output, settings, arguments.data, arguments.runs)
    places = Places(
        arguments.model, arguments.engine, arguments.gpus, arguments.context, arguments.device, arguments.served_name,
        arguments.key_variable,
    )  # fmt: skip
    places.check()
    if arguments.dry_run:
        evaluation.check()
        return _say_plan(evaluation, benchmarks, arguments)
    without = {}
    if "score" in steps and not arguments.judge:
        without["--judge"] = ", or score later: --steps load,ask"
    if "ask" in steps and not arguments.user_model:
        without["--user-model"] = ", or ask later: --steps load"
    check_other_models(benchmarks, without)
    try:
        with terminating_signals_raise(), evaluation.filled_alone():
            return _run(evaluation, benchmarks, places, steps, arguments)
    except (KeyboardInterrupt, SystemExit):
        note("what was answered and scored is kept: the same command goes on")
        raise


def _follow(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Evaluate the checkpoints of runs, each by this command and its options."""
    from megatron_apriel.evaluate.follow_commands import Commands, ended_before_job
    from megatron_apriel.evaluate.following import follow
    from megatron_apriel.evaluate.models import Places

    given = {name for name, value in vars(arguments).items() if value != parser.get_default(name)}
    if wrong := [name for name in OF_STAGE if name in given]:
        spelled = ", ".join("OUT" if name == "output" else f"--{name.replace('_', '-')}" for name in wrong)
        parser.error(f"{spelled} cannot be given with --follow: the stage of the run says it")
    options: list[str] = []
    for name in sorted(given - {"follow", "once", "look_every"}):
        value = getattr(arguments, name)
        words = [] if value is True else value if isinstance(value, list) else [value]
        options += [f"--{name.replace('_', '-')}", *map(str, words)]
    Places(["directory"], arguments.engine, arguments.gpus, arguments.context, arguments.device).check()
    commands = Commands(Path(__file__).with_name("convert_checkpoint.py"), Path(__file__), options, _figures)
    with terminating_signals_raise(), ended_before_job():
        try:
            return follow(arguments.follow, commands, once=arguments.once, seconds=arguments.look_every)
        except (KeyboardInterrupt, SystemExit):
            note("what was evaluated is kept: the same command goes on")
            raise


def _figures(config: StageConfig) -> Metrics:
    """The figures of a run; those of its file alone where the others cannot be written here."""
    from megatron_apriel.train.metrics import Metrics

    try:
        return Metrics(config, 0)
    except ConfigError as error:
        note(f"the scores go to metrics.jsonl alone: {error.what}")
        logging = config.logging.model_copy(update={"tensorboard": False, "wandb": "off"})
        return Metrics(config.model_copy(update={"logging": logging}), 0)


def _run(
    evaluation: Evaluation, benchmarks: list[Benchmark], places: Places, steps: list[str], arguments: argparse.Namespace
) -> int:
    from megatron_apriel.evaluate.models import opened
    from megatron_apriel.evaluate.scoring import Scorers

    if "load" in steps:
        for benchmark in benchmarks:
            if arguments.items_from is not None:
                evaluation.take_items(benchmark, arguments.items_from)
            evaluation.load(benchmark)
    _name_damage(evaluation, benchmarks)
    if "ask" in steps:
        again = arguments.only_failed
        waiting = [benchmark for benchmark in benchmarks if not evaluation.is_answered(benchmark, again)]
        if waiting:
            conversed = any(benchmark.conversed for benchmark in waiting)
            with (
                _user_model(arguments) if conversed else nullcontext() as user,
                opened(places, evaluation.folder) as models,
            ):
                for benchmark in waiting:
                    speaker = user if benchmark.conversed else None
                    evaluation.ask(benchmark, models, at_once=arguments.at_once, again=again, user=speaker)
    if "score" in steps:
        judge = _judge(arguments) if any(benchmark.judged for benchmark in benchmarks) else None
        with Scorers(judge, arguments.data) as scorers:
            for benchmark in benchmarks:
                evaluation.score(benchmark, scorers)
    return _report(evaluation, benchmarks, arguments) if "report" in steps else ExitCode.OK


def _name_damage(evaluation: Evaluation, benchmarks: list[Benchmark]) -> None:
    """Name lines of answers and verdicts that are passed over."""
    for benchmark in benchmarks:
        for damage in evaluation.damage(benchmark):
            note(f"{benchmark.title}: {damage}")


def _judge(arguments: argparse.Namespace) -> Model | None:
    from megatron_apriel.generate.opening import open_model

    if not arguments.judge:
        return None
    return open_model(arguments.judge, served_name=arguments.judge_name, key_variable=arguments.judge_key_variable)


def _user_model(arguments: argparse.Namespace) -> Model:
    from megatron_apriel.generate.opening import open_model

    names = {"served_name": arguments.user_model_name, "key_variable": arguments.user_model_key_variable}
    return open_model(arguments.user_model, **names)


def _say_plan(evaluation: Evaluation, benchmarks: list[Benchmark], arguments: argparse.Namespace) -> int:
    """Say how much would be asked, and how long it would take."""
    from megatron_apriel.evaluate.plan import ANSWER_TOKENS, PROMPT_TOKENS_PER_SECOND, TOKENS_PER_SECOND, in_sum, plan

    writing = arguments.tokens_per_second or TOKENS_PER_SECOND
    reading = arguments.prompt_tokens_per_second or PROMPT_TOKENS_PER_SECOND
    _name_damage(evaluation, benchmarks)
    planned = plan(evaluation, benchmarks, arguments.only_failed)
    say(*(one.spelled(writing, reading) for one in (*planned, in_sum(planned))))
    tokens = evaluation.settings.max_tokens
    say(f"answers of {tokens or ANSWER_TOKENS:,} tokens, {'the most allowed' if tokens else 'assumed with reasoning'}")
    for what, speed, given, reason in (
        ("answers", writing, arguments.tokens_per_second, "memory of one H200 allows 15 billion parameters in 16 bits, "
                                                          "32 answers at a time"),
        ("questions", reading, arguments.prompt_tokens_per_second, "same GPU computes, the pictures' tokens included"),
    ):  # fmt: skip
        say(f"{speed:,} tokens of {what} a second, {'as said' if given else f'assumed: what the {reason}'}")
    say("no judge, and no start of an engine, is in the hours")
    note("dry run: nothing was asked or written")
    return ExitCode.OK


def _report(evaluation: Evaluation, benchmarks: list[Benchmark], arguments: argparse.Namespace) -> int:
    """Write and show what there is."""
    from megatron_apriel.evaluate.benchmarks import left_out
    from megatron_apriel.evaluate.comparing import difference
    from megatron_apriel.evaluate.page import write_page
    from megatron_apriel.evaluate.report import Report, table, write_report
    from megatron_apriel.evaluate.running import earlier_evaluation
    from megatron_apriel.evaluate.statistics import paired
    from megatron_apriel.tables import standard_output

    rows = {benchmark.name: evaluation.row(benchmark) for benchmark in benchmarks}
    others = {str(folder): earlier_evaluation(folder) for folder in arguments.baseline}
    differences: dict[str, dict[str, Interval]] = {}
    unpaired = []
    for name, other in others.items():
        differences[name] = {}
        for benchmark in filter(other.is_loaded, benchmarks):
            row = rows[benchmark.name]
            gain, both = difference(row, evaluation, other.row(benchmark), other)
            if gain is not None:
                differences[name][row.name] = gain
            if both < row.items:
                alike = f"{both:,} of {counted(row.items, 'item')} {'is' if both == 1 else 'are'}"
                unpaired.append(f"{row.title}: {alike} asked and scored alike in {name}.")
    gains = {}
    for benchmark in benchmarks:
        if benchmark.blind in rows and (
            added := paired(rows[benchmark.name].shares, rows[benchmark.blind].shares, rows[benchmark.name].clusters)
        ):
            gains[benchmark.title] = added
    missing = left_out(arguments.benchmarks)
    report = Report(vars(evaluation.settings), list(rows.values()), differences, gains, missing, unpaired)
    write_page(evaluation, benchmarks, report, others)
    write_report(evaluation.folder, report)
    standard_output(200).print(table(report))
    say(*report.differences(), *report.remarks())
    say(f"written: {evaluation.folder}/report.md, report.json, report.html")
    return ExitCode.FAILED if any(row.missing or row.failed for row in report.rows) else ExitCode.OK


if __name__ == "__main__":
    sys.exit(run_command(main))
