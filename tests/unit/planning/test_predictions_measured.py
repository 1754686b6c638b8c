"""What the plan and the dry run predict against what was measured on GPUs: the files in ``benchmarks/results``."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import cache

import pytest

from benchmarks import predictions
from benchmarks.cases import CASES
from benchmarks.one_gpu_report import STEP_TOKENS, OneGpu
from benchmarks.predictions import Measured, as_of, on_several_gpus, predicted_of
from benchmarks.report import RESULTS
from benchmarks.spread import Spread
from benchmarks.spread_cli import workload_of
from benchmarks.stages import stage_of
from benchmarks.step_report import Measurement, newest
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning import layer_time
from megatron_apriel.planning.hardware import KINDS
from megatron_apriel.planning.memory import rank_memory
from megatron_apriel.planning.step_time import step_time
from megatron_apriel.planning.workload import Content, Workload

REMADE_SINCE = "20261130-08"
"""Until then, layers that were not recomputed kept copies of their weights in 8 bits from the forward pass on."""
SLICES = [one for one in newest(RESULTS) if one.subject.startswith("ours-")]
SPREADS = on_several_gpus()
WHOLE_MODELS = [
    one
    for path in sorted(RESULTS.glob("one_gpu-*.json"))
    for row in json.loads(path.read_text(encoding="utf-8"))["measurements"]
    for one in [OneGpu.from_json(row)]
    if one.status == "measured" and (one.recomputed is None or path.stem.split("-", 3)[3] >= REMADE_SINCE)
]
SPLIT_SINCE = "2026-11-30 03:00"
"""In measurements from before, masters lay as a whole beside the weights; since then the weights are a part of them."""
H200 = KINDS["h200"]
WITHIN = 0.05
TOO_FAST = {
    ("TP2 SP overlapped, states on the host: auto, 8-bit weights remade", "16384-mix", "delayed"): (0.05, 0.06),
    ("DP2, dealt evenly", "32768-real", "delayed"): (0.05, 0.06),
}
"""Layout, case and precision -> by how much the prediction is above what was measured, where it is by more than 5%."""


@cache
def work(case: str, sequences: int) -> Workload:
    return workload_of(Spread(case, "bf16", 1, 1, sequences))


def as_spread(measurement: Measurement) -> Spread:
    precision, _, recompute = measurement.subject.removeprefix("ours-").partition("+")
    spread = Spread(measurement.case, precision, measurement.layers, 1, measurement.micro_batches)
    return replace(spread, recompute=recompute or "none")


def architecture_of(measurement: Measurement) -> Architecture:
    """Slices for text have no tower."""
    whole = as_spread(measurement).architecture()
    return whole if CASES[measurement.case].has_images else Architecture(whole.decoder)


def test_everything_that_is_planned_for_was_measured() -> None:
    measured = {(one.case, one.subject) for one in SLICES}
    recipes = ("ours-bf16", "ours-delayed", "ours-tensorwise", "ours-blockwise")
    assert {("8192", subject) for subject in recipes} <= measured
    assert {"32768", "32768-packed", "16384-mix", "8192-realign"} <= {case for case, _ in measured}
    assert {"ours-bf16+full", "ours-tensorwise+selective"} <= {subject for _, subject in measured}
    labels = {row.found.spread.label for row in SPREADS}
    assert labels >= {"DP2", "DP4", "TP2 SP", "TP4 SP", "PP2 VP6 DP2", "CP2 PP2 VP6", "TP2 SP CP2", "DP2, dealt evenly"}


@pytest.mark.parametrize("one", SLICES, ids=lambda one: f"{one.case}, {one.subject}, {one.layers} layers")
def test_a_step_on_one_gpu(one: Measurement) -> None:
    """The rates come from slopes at 8192 tokens; everything else follows from them."""
    config = as_spread(one).config()
    time = step_time(config, architecture_of(one), Layout(), H200, work(one.case, one.micro_batches))
    assert 1e3 * time.total == pytest.approx(one.step_ms, rel=0.03)


@pytest.mark.parametrize("one", SLICES, ids=lambda one: f"{one.case}, {one.subject}, {one.layers} layers")
def test_its_memory(one: Measurement) -> None:
    memory = rank_memory(as_spread(one).config(), architecture_of(one), Layout(), 0)
    # What shows that it is from before SPLIT_SINCE: 12 bytes a parameter beside the gradients' 4.
    whole = memory.gradients / 2 if one.memory["optimizer state"] > 2.9 * one.memory["main gradients"] else 0.0
    # Predicted is a sequence full of images; those that were measured hold text too.
    contents = work(one.case, one.micro_batches).contents
    text = 1 - max(sum(content.images) for content in contents) / CASES[one.case].sequence_length
    assert memory.total - text * memory.images + whole == pytest.approx(one.memory["peak"], rel=0.025)
    assert memory.gradients == pytest.approx(one.memory["main gradients"], rel=0.01)
    assert memory.optimizer + whole == pytest.approx(one.memory["optimizer state"], rel=0.01)


def test_the_whole_model_was_measured_on_one_gpu() -> None:
    measured = {(one.precision, one.recomputed) for one in WHOLE_MODELS if (one.case, one.layers) == ("8192", 48)}
    assert measured >= {("tensorwise", None), ("bf16", None)}


@pytest.mark.parametrize("one", WHOLE_MODELS, ids=lambda one: one.title)
def test_the_whole_model_on_one_gpu(one: OneGpu) -> None:
    """Memory within 3%; of time a micro-batch within 5%, the rest of a step within 12%."""
    config = stage_of({**asdict(one), "more": 8, "tiny": False}, compute="bf16")
    whole = Architecture.from_preset("apriel-15b").with_layers(one.layers)
    model = whole if CASES[one.case].has_images else Architecture(whole.decoder)
    # That very GPU: what the program had of it is all that auto leaves there.
    gpu = H200.model_copy(update={"memory": one.predicted_peak / 2**30 + H200.reserve})
    memory = rank_memory(config, model, Layout(), 0, gpu.available)
    assert memory.total == pytest.approx(one.peak, rel=0.03)
    assert memory.host == pytest.approx(one.host_bytes, rel=0.03)
    work = Workload(one.document_tokens or config.sequence_length, one.image_tokens)
    time = step_time(config, model, Layout(), gpu, work)
    if one.per_step_ms > one.update_ms + 300:
        # Timed twice, and once much longer: something else was at the host's memory. What it took is in no micro-batch.
        three = 3 * time.compute / time.micro_batches + time.optimizer
        assert 1e3 * three == pytest.approx(3 * one.micro_batch_ms + one.per_step_ms, rel=0.05)
        return
    assert 1e3 * time.compute / time.micro_batches == pytest.approx(one.micro_batch_ms, rel=0.05)
    # As fast as the link to the host, which gave 40 to 50 GB/s: less while another GPU of that host used it.
    assert 1e3 * time.optimizer == pytest.approx(one.per_step_ms, rel=0.12)
    for tokens in STEP_TOKENS.values():
        count = tokens // one.tokens
        whole = count * time.compute / time.micro_batches + time.optimizer
        assert 1e3 * whole == pytest.approx(one.step_ms(count), rel=0.05)


@pytest.mark.parametrize("row", [pytest.param(row, id=f"{row.result}, {row.found.spread.title}") for row in SPREADS])
def test_a_step_on_several_gpus(row: Measured) -> None:
    """None of these measurements set a number of the plan; links and rates come from others."""
    spread = row.found.spread
    peaks = [
        memory.total + (memory.optimizer / 5 if row.date < SPLIT_SINCE else 0)
        for number in range(spread.layout().pipeline)
        for memory in [rank_memory(spread.config(), spread.architecture(), spread.layout(), number, H200.available)]
    ]
    assert max(peaks) == pytest.approx(row.found.peak, rel=0.05)
    least, most = TOO_FAST.get((spread.label, spread.case, spread.precision), (-WITHIN, WITHIN))
    assert least <= predicted_of(row).tokens_per_second / row.found.tokens_per_second - 1 <= most


def test_the_table_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert predictions.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(SPREADS)
    (line,) = (line for line in lines if "| TP2 SP CP2 |" in line)
    shown = dict(zip(predictions.HEADINGS, [cell.strip() for cell in line.split("|")[1:-1]], strict=True))
    assert (shown["s a step"], shown["layers"], shown["precision"]) == ("5.24", "48", "delayed")
    assert abs(float(shown["off"].rstrip("%")) / 100) < WITHIN


def test_the_code_as_it_was_then() -> None:
    """What gathered keys' gradients cost until they were added up in one tensor: by hand, on two ranks.

    49 times the keys and values for pieces of pieces (14 written, 7 read and written, 7 sums of two), and 5 for what
    the blocks see of them; once and three times what they see since.
    """
    (row,) = (row for row in SPREADS if row.found.spread.label == "CP2 PP2 VP6")
    spread, content = row.found.spread, Content((32768,))
    architecture, layout = spread.architecture().decoder, spread.layout()
    with as_of(row.date):
        before = layer_time.context_seconds(architecture, layout, H200, content)
    since = layer_time.context_seconds(architecture, layout, H200, content)
    keys, queries, seen = 32768 * 2 * 2 * 8 * 128, 16384 * 2 * 32 * 128, 5 / 4
    forward, backward = ((old - new) * H200.copy_bandwidth * 1e9 for old, new in zip(before, since, strict=True))
    assert forward == pytest.approx(2 * keys)
    assert backward == pytest.approx((49 + 5 + 2 * seen) * keys + 7 * queries - (1 + 3 * seen) * keys - 2 * queries)
