"""Tables and pages of measurements on several GPUs. No torch, no device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
            listed(remarks(rows)),
        ]),
    )  # fmt: skip
