"""Scores of a run's checkpoints: a damaged line costs itself alone, and is named; nothing that was read is invented."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from random import Random
from typing import Any

from megatron_apriel.config.output_sections import EvaluateSection
from megatron_apriel.formats.run_directory import RunDirectory
from megatron_apriel.formats.run_evaluations import RunEvaluations, ScoreRecord, scores_of

from ..byte_changes import change_bytes
from ..case import Target, Wrong
from ..json_changes import change_value, write_json

NAMES = ("step", "tokens", "scores", "intervals", "without_answer", "path", "seconds", "ifbench", "value")


class Scores(Target):
    """``scores.jsonl``, by which metrics, TensorBoard and ``tools/compare.py`` know of evaluations."""

    name = "scores"
    about = "scores.jsonl of a run that is followed, and how many of its lines were taken over"
    guided = "scores.jsonl"

    def make(self, directory: Path) -> None:
        """Every case writes its own."""

    def mutate(self, random: Random, directory: Path, changes: int) -> str:
        records: list[Any] = [_record(random, step) for step in range(100, 600, 100)]
        inside, done = random.randint(0, changes), []
        for _ in range(inside):
            place = random.randrange(len(records))
            records[place], what = change_value(random, records[place], NAMES)
            done.append(f"line {place + 1}: {what}")
        text = "".join(f"{write_json(record)}\n" for record in records)
        data = text.encode("utf-8", "surrogatepass")
        for _ in range(changes - inside):
            data, what = change_bytes(random, data)
            done.append(what)
        (directory / "scores.jsonl").write_bytes(data)
        if changes and random.random() < 0.3:
            recorded = random.choice((b"", b"1\n", b"99", b"-3", random.randbytes(4)))
            (directory / "recorded").write_bytes(recorded)
            done.append(f"recorded: {recorded!r}")
        return "; ".join(done)

    def check(self, directory: Path) -> None:
        run = _place(directory)
        section = EvaluateSection.model_validate({"benchmarks": ["ifbench"]})
        evaluations = RunEvaluations(run, section, every=100, steps=1000)
        lines = (run.evaluations / "scores.jsonl").read_bytes().split(b"\n")[:-1]
        remarks: list[str] = []
        found = [record.model_dump(mode="json") for record in scores_of(run, remarks.append).values()]
        try:
            read = [_independent(line) for line in lines]
        except _Twice:
            return
        whole, damaged = [record for record in read if record is not None], read.count(None)
        if found != list({record["step"]: record for record in whole}.values()):
            raise Wrong(f"{len(found)} scores were read of {len(whole)}")
        if bool(damaged) != bool(remarks) or (damaged and not remarks[0].startswith(f"{damaged:,} of {len(lines):,} ")):
            raise Wrong(f"{damaged} damaged lines were told as {remarks}")
        with contextlib.redirect_stderr(io.StringIO()):
            taken = list(evaluations.new_scores())
            if evaluations.has_new() or list(evaluations.new_scores()):
                raise Wrong("what was taken is new again")
        if [record.model_dump(mode="json") for record in taken] != whole[len(whole) - len(taken) :]:
            raise Wrong("other scores were taken over than are there")
        evaluations.add(ScoreRecord(step=7, tokens=7, scores={}, intervals={}, without_answer={}, path="", seconds=0))
        if 7 not in evaluations.scored(remarks.append):
            raise Wrong("a score that was added is lost")


def _record(random: Random, step: int) -> dict[str, Any]:
    value = random.uniform(0, 100)
    return {
        "step": step, "tokens": step * 2048, "scores": {"ifbench": value, "own": 50.0},
        "intervals": {"ifbench": [value / 2, value], "own": [40.0, 60.0]}, "without_answer": {"ifbench": 1, "own": 0},
        "path": "runs/a/evaluations", "seconds": 2.5,
    }  # fmt: skip


def _place(directory: Path) -> RunDirectory:
    """The case as a run's folder."""
    run = RunDirectory(directory / "run")
    run.evaluations.mkdir(parents=True)
    for name in ("scores.jsonl", "recorded"):
        if (directory / name).exists():
            (run.evaluations / name).write_bytes((directory / name).read_bytes())
    return run


def _independent(line: bytes) -> dict[str, Any] | None:
    """The record of a line if it is one, by rules written down here again."""
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_object)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # which lone surrogates cannot be
    except (ValueError, RecursionError):
        return None
    fields = {"step", "tokens", "scores", "intervals", "without_answer", "path", "seconds"}
    if not isinstance(value, dict) or value.keys() != fields:
        return None
    scores, intervals, without = value["scores"], value["intervals"], value["without_answer"]
    if not all(isinstance(one, dict) for one in (scores, intervals, without)):
        return None
    if not scores.keys() == intervals.keys() == without.keys() or any(len(name) > 200 for name in scores):
        return None
    pairs = list(intervals.values())
    right = (
        all(map(_is_count, (value["step"], value["tokens"], *without.values())))
        and all(map(_is_percent, scores.values()))
        and all(isinstance(pair, list) and len(pair) == 2 and all(map(_is_percent, pair)) for pair in pairs)
        and all(low <= high for low, high in pairs)
        and isinstance(value["path"], str)
        and _is_number(value["seconds"])
        and 0 <= value["seconds"] <= 2**53
    )
    return value if right else None


class _Twice(Exception):
    """A name stands twice in an object: a reader may take one of them or none."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise _Twice
    return dict(pairs)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53


def _is_percent(value: Any) -> bool:
    return _is_number(value) and -100 <= value <= 100
