"""Tables and pages of measurements on several GPUs. No torch, no device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.report import GIB, Page, Record, listed, markdown
from benchmarks.spread import Found, Prediction

Row = tuple[Found, Prediction]

LAYOUT_HEADINGS = (
    "case", "layout", "recompute", "precision", "layers", "s a step", "tokens/s/GPU", "predicted", "TFLOP/s/GPU",
    "GiB", "predicted GiB", "waits for ranks", "predicted", "idle", "imbalance", "loss",
)  # fmt: skip
SCALING_HEADINGS = (
    "precision", "GPUs", "layout", "ms a step", "tokens/s/GPU", "of one GPU's", "TFLOP/s/GPU", "GiB",
    "waits for ranks", "idle", "imbalance",
)  # fmt: skip
DEALING_HEADINGS = (
    "precision", "GPUs", "layout", "different steps", "ms a step", "tokens/s/GPU", "of dealt in order", "TFLOP/s/GPU",
    "busiest rank's FLOPs", "imbalance", "waits for ranks", "idle", "loss",
)  # fmt: skip
DIVISION_HEADINGS = (
    "case", "layout", "recompute", "precision", "ms", "attention", "copies", "all other computing", "all-gather",
    "reduce-scatter", "all-reduce", "message", "idle", "kernels",
)  # fmt: skip
_GROUPS = "attention", "copies and other"
_DIVIDED = (
    "Milliseconds of a layer and micro-batch, all else of a step shared out to them; but for the first, of profiled\n"
    "steps, mean over the GPUs. Of communication, what nothing hides, by what waits; *kernels*, how many start."
)


def layout_rows(rows: Sequence[Row]) -> list[list[str]]:
    """One row a layout that was measured, in the columns of :data:`LAYOUT_HEADINGS`."""
    return [
        [
            found.spread.case,
            found.spread.label,
            found.spread.recomputation,
            found.spread.precision,
            str(found.spread.layers),
            f"{found.step_ms / 1e3:.2f}",
            f"{found.tokens_per_second:,.0f}",
            f"{said.tokens_per_second:,.0f} ({found.tokens_per_second / said.tokens_per_second - 1:+.0%})",
            f"{found.tflops:.0f}",
            f"{found.peak / GIB:.1f}",
            f"{said.peak / GIB:.1f} ({found.peak / said.peak - 1:+.1%})",
            f"{found.share('communicating_ms'):.1%}",
            f"{said.communicating:.1%}",
            f"{found.share('idle_ms'):.1%}",
            f"{found.imbalance:.1%}",
            f"{found.loss:.3f}",
        ]
        for found, said in rows
        if found.status == "measured"
    ]


def scaling_rows(rows: Sequence[Row]) -> list[list[str]]:
    """One row a number of GPUs that was measured, by precision, in the columns of :data:`SCALING_HEADINGS`."""
    precisions = list(dict.fromkeys(found.spread.precision for found, _ in rows))
    measured = [found for found, _ in rows if found.status == "measured"]
    measured.sort(key=lambda found: precisions.index(found.spread.precision))
    alone = {found.spread.precision: found.tokens_per_second for found in measured if found.spread.gpus == 1}
    return [
        [
            found.spread.precision,
            str(found.spread.gpus),
            found.spread.label,
            f"{found.step_ms:.0f}",
            f"{found.tokens_per_second:,.0f}",
            _ratio(found.tokens_per_second, alone.get(found.spread.precision)),
            f"{found.tflops:.0f}",
            f"{found.peak / GIB:.1f}",
            f"{found.share('communicating_ms'):.1%}",
            f"{found.share('idle_ms'):.1%}",
            f"{found.imbalance:.1%}",
        ]
        for found in measured
    ]


def dealing_rows(rows: Sequence[Row]) -> list[list[str]]:
    """One row a way of dealing that was measured, in the columns of :data:`DEALING_HEADINGS`."""
    measured = [found for found, _ in rows if found.status == "measured"]
    in_order = {
        found.spread.precision: found.tokens_per_second
        for found in measured
        if found.spread.config().parallel.dealing == "in_order"
    }
    return [
        [
            found.spread.precision,
            str(found.spread.gpus),
            found.spread.label,
            str(found.spread.different_steps),
            f"{found.step_ms:.0f}",
            f"{found.tokens_per_second:,.0f}",
            _ratio(found.tokens_per_second, in_order.get(found.spread.precision)),
            f"{found.tflops:.0f}",
            f"{found.excess_flops:+.1%}",
            f"{found.imbalance:.1%}",
            f"{found.share('communicating_ms'):.1%}",
            f"{found.share('idle_ms'):.1%}",
            f"{found.loss:.4f}",
        ]
        for found in measured
    ]


def division_rows(rows: Sequence[Row]) -> list[list[str]]:
    """One row a layout whose steps were divided, in the columns of :data:`DIVISION_HEADINGS`."""
    return [
        [
            found.spread.case,
            found.spread.label,
            found.spread.recomputation,
            found.spread.precision,
            *(f"{cell:.2f}" for cell in _divided_ms(found)),
            f"{_of_layers(found, [one['kernels'] / one['steps'] for one in found.divisions]):.0f}",
        ]
        for found, _ in rows
        if found.status == "measured" and any(one["kernels"] for one in found.divisions)
    ]


def _divided_ms(found: Found) -> list[float]:
    """Milliseconds of a layer and micro-batch: of a step, and of the parts of a profiled one."""

    def parts(of_rank: Callable[[Mapping[str, float], Mapping[str, Any]], float]) -> float:
        ranks = zip(found.ranks, found.divisions, strict=True)
        return _of_layers(found, [of_rank(rank, division) / division["steps"] for rank, division in ranks])

    def part_of(part: str, name: str) -> float:
        return parts(lambda _, division: float(division[part].get(name, 0.0)))

    groups = [part_of("computing", name) for name in _GROUPS]
    waits = [part_of("waiting", name) for name in DIVISION_HEADINGS[8:12]]
    others = parts(lambda rank, _: rank["computing_ms"]) - sum(groups)
    return [_of_layers(found, [found.step_ms]), *groups, others, *waits, parts(lambda rank, _: rank["idle_ms"])]


def _of_layers(found: Found, of_ranks: Sequence[float]) -> float:
    """The mean over ranks of something of a step, shared out over a rank's layers and their micro-batches."""
    layout = found.spread.layout()
    layers = found.spread.layers / layout.pipeline
    return sum(of_ranks) / len(of_ranks) / layers / layout.micro_batches(found.spread.sequences)


def _ratio(value: float, to: float | None) -> str:
    return f"{value / to:.1%}" if to else "-"


def remarks(rows: Sequence[Row]) -> list[str]:
    """What was not measured, and why."""
    return [f"{found.spread.title}: {found.status}: {found.reason}" for found, _ in rows if found.status != "measured"]


def recorded(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Measurements with their predictions, as JSON."""
    return [{"found": asdict(found), "predicted": asdict(said)} for found, said in rows]


def page_of(
    title: str,
    question: str,
    record: Record,
    headings: Sequence[str],
    rows_of: Callable[[Sequence[Row]], list[list[str]]],
) -> Page:
    """What a benchmark on several GPUs says of a record."""
    rows = [(Found.from_json(one["found"]), Prediction(**one["predicted"])) for one in record["measurements"]]
    measured = [found.spread.title for found, _ in rows if found.status == "measured"]
    by_layer = division_rows(rows)
    divided = ["", markdown(DIVISION_HEADINGS, by_layer), "", _DIVIDED] if by_layer else []
    return Page(
        title,
        question,
        configuration=f"{'; '.join(measured)}; {record['timing']}",
        measured=measured,
        body="\n".join([
            markdown(headings, rows_of(rows)),
            "",
            "Of one profiled step, mean over the GPUs: *waits for ranks*, only communication ran (which nothing",
            "hides, with a pipeline's bubble and other ranks' delays); *idle*, no kernel ran. *imbalance*: how much",
            "longer than the mean the busiest GPU computed. *predicted*: by `tools/plan.py`; its communication counts",
            "the bubble.",
            *divided,
            listed(remarks(rows)),
        ]),
    )  # fmt: skip
