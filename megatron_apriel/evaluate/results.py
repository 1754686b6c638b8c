"""What the files of a benchmark add up to: one row of the table, and the scores of its parts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_apriel.evaluate.chains import filled
from megatron_apriel.evaluate.items import Item, Source
from megatron_apriel.evaluate.records import Record, read_answers, read_verdicts
from megatron_apriel.evaluate.statistics import Interval, bootstrap
from megatron_apriel.grading.verdict import Cause, Mark


def run_files(folder: Path, run: int) -> tuple[Path, Path]:
    """Answers and verdicts of a run, from 1 on."""
    return folder / f"answers-{run}.jsonl", folder / f"verdicts-{run}.jsonl"


@dataclass(frozen=True)
class Scored:
    """An item with all that is known of it in one run; no answer: not asked yet, no verdict: not scored yet."""

    item: Item
    run: int
    answer: Record | None
    verdict: Record | None

    @property
    def is_right(self) -> bool:
        return self.verdict is not None and self.verdict["mark"] == Mark.RIGHT

    @property
    def cause(self) -> str:
        return str(self.verdict["cause"]) if self.verdict is not None else ""


def scored_items(folder: Path, items: Sequence[Item], runs: int) -> tuple[list[Scored], list[str]]:
    """Everything that was asked, of all runs; an answer to another question than the item's now is none.

    And which lines of the files are damaged.
    """
    found: list[Scored] = []
    damage: list[str] = []
    for run in range(1, runs + 1):
        paths = run_files(folder, run)
        answers, verdicts = read_answers(paths[0]), read_verdicts(paths[1])
        damage += filter(None, (answers.damage, verdicts.damage))
        for item in filled(items, answers.records):
            answer = answers.records.get(item.key)
            current = answer if answer is not None and answer["question"] == item.question_mark else None
            verdict = verdicts.records.get(item.key) if current is not None else None
            found.append(Scored(item, run, current, verdict))
    return found, damage


@dataclass(frozen=True)
class Part:
    """The score of a part of a benchmark.

    Attributes:
        name: kind of part and part, as ``variant`` and ``count total``.
        items: of it.
        score: of it.
        chance: percent right by guessing; None where that is not known.
        most_frequent: percent right by always saying the most frequent answer; None where answers differ in kind.
    """

    name: tuple[str, str]
    items: int
    score: Interval
    chance: float | None = None
    most_frequent: float | None = None


@dataclass(frozen=True)
class Row:
    """One row of the table. Numbers are of items times runs.

    Attributes:
        name, title: of the benchmark.
        score: right of all that should be asked.
        loose: the score by the loose rule, where there is one.
        asked: answers and failures; ``missing`` were not asked yet or not scored yet.
        right, wrong, none: verdicts; none without those that are truncated or failed.
        truncated, failed: of the rest.
        uncheckable: of none: what checks was not to be had, or the item is at fault.
        unchecked: of these the most frequent reason, and how many of them the next scoring tries again.
        tokens: mean of an answer; seconds: mean for one.
        shares: of each item, right ones of its runs.
        damage: which lines of its files are passed over.
    """

    name: str
    title: str
    source: Source
    runs: int
    items: int
    score: Interval
    asked: int
    missing: int
    right: int
    wrong: int
    none: int
    truncated: int
    failed: int
    uncheckable: int
    paper: float | None = None
    loose: Interval | None = None
    tokens: float | None = None
    seconds: float | None = None
    scorers: Sequence[str] = ()
    shares: Mapping[str, float] = field(default_factory=dict)
    clusters: Mapping[str, str] = field(default_factory=dict)
    parts: Sequence[Part] = ()
    damage: Sequence[str] = ()
    unchecked: tuple[str, int] = ("", 0)


def row_of(
    name: str, title: str, paper: float | None, source: Source, runs: int, scored: Sequence[Scored],
    damage: Sequence[str] = (),
) -> Row:  # fmt: skip
    """Add up what is known of a benchmark's items."""
    causes = Counter(one.cause for one in scored if one.verdict is not None and one.verdict["mark"] == Mark.NONE)
    marks = Counter(one.verdict["mark"] for one in scored if one.verdict is not None)
    clusters = {one.item.key: one.item.cluster for one in scored}
    shares = _shares(scored)
    tokens = [one.answer["tokens"] for one in scored if one.answer is not None and one.answer.get("tokens") is not None]
    seconds = [one.answer["seconds"] for one in scored if one.answer is not None]
    truncated, failed = causes[Cause.TRUNCATED], causes[Cause.FAILED]
    return Row(
        name,
        title,
        source,
        runs,
        items=len(clusters),
        score=bootstrap(list(shares.values()), list(clusters.values())),
        asked=sum(one.answer is not None for one in scored),
        missing=sum(one.verdict is None for one in scored),
        right=marks[Mark.RIGHT],
        wrong=marks[Mark.WRONG],
        none=marks[Mark.NONE] - truncated - failed,
        truncated=truncated,
        failed=failed,
        uncheckable=causes[Cause.CHECK] + causes[Cause.DATA],
        paper=paper,
        loose=_loose(scored, clusters),
        tokens=_mean(tokens),
        seconds=_mean(seconds),
        scorers=sorted({one.verdict["scorer"] for one in scored if one.verdict is not None}),
        shares=shares,
        clusters=clusters,
        parts=list(_parts(scored, clusters)),
        damage=damage,
        unchecked=(_most_frequent_reason(scored), causes[Cause.CHECK]),
    )


def _most_frequent_reason(scored: Sequence[Scored]) -> str:
    """Of what could not be checked."""
    reasons = Counter(
        one.verdict["reason"] for one in scored if one.verdict and one.verdict["cause"] in (Cause.CHECK, Cause.DATA)
    )
    return str(max(reasons, key=reasons.__getitem__, default=""))


def _shares(scored: Sequence[Scored]) -> dict[str, float]:
    found: dict[str, list[bool]] = defaultdict(list)
    for one in scored:
        found[one.item.key].append(one.is_right)
    return {key: sum(right) / len(right) for key, right in found.items()}


def _loose(scored: Sequence[Scored], clusters: Mapping[str, str]) -> Interval | None:
    """By the rule that some benchmarks have beside their own; never shown alone."""
    if not any(one.verdict is not None and "loose" in one.verdict["parts"] for one in scored):
        return None
    found: dict[str, list[bool]] = defaultdict(list)
    for one in scored:
        loose = one.verdict["parts"].get("loose") if one.verdict is not None else None
        found[one.item.key].append(bool(loose) and all(loose or ()))
    return bootstrap([sum(right) / len(right) for right in found.values()], [clusters[key] for key in found])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _parts(scored: Sequence[Scored], clusters: Mapping[str, str]) -> Iterator[Part]:
    kinds = dict.fromkeys(kind for one in scored for kind in one.item.groups)
    for kind in kinds:
        names = dict.fromkeys(one.item.groups[kind] for one in scored if one.item.groups.get(kind))
        for name in sorted(names):
            own = [one for one in scored if one.item.groups.get(kind) == name]
            shares = _shares(own)
            score = bootstrap(list(shares.values()), [clusters[key] for key in shares])
            items = list({one.item.key: one.item for one in own}.values())
            yield Part((kind, name), len(items), score, *_guesses(items))


def _guesses(items: Sequence[Item]) -> tuple[float | None, float | None]:
    """Percent right by chance, and by always saying what is most often right; for visual tasks."""
    if any(item.scorer != "visual_task" for item in items):
        return None, None
    answers = Counter(str(item.grading["answer"]) for item in items)
    seen: dict[str, set[str]] = defaultdict(set)
    for item in items:
        seen[item.groups["variant"]].add(str(item.grading["answer"]))
    chances = [1 / (item.grading["choices"] or len(seen[item.groups["variant"]])) for item in items]
    return 100 * sum(chances) / len(chances), 100 * answers.most_common(1)[0][1] / len(items)


def as_json(row: Row) -> dict[str, Any]:
    """A row as it is kept, without the single items."""
    kept = {name: value for name, value in vars(row).items() if name not in ("clusters", "shares", "parts")}
    return kept | {
        "source": vars(row.source), "score": vars(row.score), "loose": None if row.loose is None else vars(row.loose),
        "parts": [{**vars(part), "score": vars(part.score)} for part in row.parts],
    }  # fmt: skip
