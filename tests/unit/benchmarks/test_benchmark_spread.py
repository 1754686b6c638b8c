"""Measurements on several GPUs: what each rank sees, figures and tables by hand, failures, and the commands tried."""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from benchmarks import dealing, layouts, scaling
from benchmarks.cases import CASES, STAGES, batches, real_lengths, real_packs, small
from benchmarks.kernel_groups import division, occupancy
from benchmarks.processes import ROOT, Processes
from benchmarks.spread import Found, Prediction, Spread, measure_spreads
from benchmarks.spread_report import (
    DEALING_HEADINGS,
    DIVISION_HEADINGS,
    LAYOUT_HEADINGS,
    SCALING_HEADINGS,
    dealing_rows,
    division_rows,
    layout_rows,
    remarks,
    scaling_rows,
)
from megatron_apriel.config.load import load_stage
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.data_place import DataPlace
from megatron_apriel.planning.hardware import hardware
from megatron_apriel.testing.batches import owned_positions

MIX = Spread("16384-mix", "bf16", 8, 2, 8, {"tensor": 2, "sequence": True})


def kernel(name: str, start: float, duration: float) -> dict[str, object]:
    return {"cat": "kernel", "name": name, "ts": start, "dur": duration}


def found(spread: Spread = MIX, computing: Sequence[float] = (80.0, 60.0), step_ms: float = 2000.0) -> Found:
    ranks = [
        {
            "peak": 2.0**30 * (10 + rank),
            "span_ms": 100.0,
            "computing_ms": ms,
            "communicating_ms": 90 - ms,
            "idle_ms": 10,
        }
        for rank, ms in enumerate(computing)
    ]
    return Found(spread, "measured", "", step_ms, tokens=8 * 16384, flops=4e15, loss=3.0, ranks=ranks)


@pytest.mark.parametrize("name", ["ncclDevKernel_AllGather", "kuserbuffers_pushrecv", "Memcpy PtoP (Device -> Device)"])
def test_occupancy_counts_what_nothing_hides(name: str) -> None:
    """Microseconds: compute 0-4000, communication 3000-6000 (1000 hidden), nothing until 7000, compute to 9000."""
    trace = [
        kernel("gemm", 0, 4000),
        kernel(name, 3000, 3000),
        kernel("gemm", 7000, 1500),
        kernel("norm", 7500, 1500),
        {"cat": "cpu_op", "name": "gemm", "ts": 0, "dur": 99999},
    ]
    shown = occupancy(trace)
    assert (shown.span_ms, shown.computing_ms, shown.communicating_ms, shown.idle_ms) == (9, 6, 2, 1)
    assert occupancy([]).span_ms == 0


def test_what_kernels_were_for() -> None:
    """Microseconds: attention 0-4000 and 7000-8000, a product 7500-9000; a gather from 3000, a message from 5000 on."""
    trace = [
        kernel("flash_fwd", 0, 4000),
        kernel("ncclDevKernel_AllGather_RING_LL", 3000, 3000),
        kernel("ncclDevKernel_SendRecv", 5000, 1500),
        kernel("flash_bwd", 7000, 1000),
        kernel("nvjet_gemm", 7500, 1500),
        kernel("ncclDevKernel_AllReduce_Sum", 8000, 500),
        {"cat": "cpu_op", "name": "flash", "ts": 0, "dur": 99999},
    ]
    shown = division(trace)
    assert shown.kernels == 6
    assert shown.computing == {"attention": 5.0, "matrix products": 1.5}
    assert shown.waiting == {"all-gather": 2.0, "message": 1.5, "all-reduce": 0.0}


def test_the_table_of_divisions_by_hand() -> None:
    """Two ranks of a pipeline with four layers each, four micro-batches, two profiled steps: 32 times a layer."""
    spread = replace(MIX, gpus=4, sequences=8, parallel={"pipeline": 2, "virtual": 2})
    one = {"kernels": 3200, "steps": 2, "computing": {"attention": 32.0, "norms": 9.0}, "waiting": {"message": 16.0}}
    divided = replace(found(spread, computing=(80.0, 60.0), step_ms=160.0), divisions=[one, {**one, "kernels": 6400}])
    said = Prediction(1, 1, 1, 0)
    (row,) = division_rows([(divided, said), (found(), said)])
    shown = dict(zip(DIVISION_HEADINGS, row, strict=True))
    assert (shown["ms"], shown["attention"], shown["message"], shown["all-gather"]) == ("10.00", "1.00", "0.50", "0.00")
    assert (shown["all other computing"], shown["idle"], shown["kernels"]) == ("1.19", "0.31", "150")
    record = {"timing": "", "measurements": [{"found": asdict(divided), "predicted": asdict(said)}]}
    assert "what nothing hides" in layouts.page(record).body
    record["measurements"][0]["found"].pop("divisions")
    assert "what nothing hides, by what waits" not in layouts.page(record).body


def test_figures_by_hand() -> None:
    one = found()
    assert one.tokens_per_second == pytest.approx(8 * 16384 / 2 / 2)
    assert one.tflops == pytest.approx(4e15 / 2 / 2 / 1e12)
    assert one.peak == 11 * 2**30
    assert one.share("communicating_ms") == pytest.approx(0.2)
    assert one.imbalance == pytest.approx(80 / 70 - 1)


def test_tables() -> None:
    said = Prediction(tokens_per_second=40_000, tflops=900, peak=11.11 * 2**30, communicating=0.1)
    (row,) = layout_rows([(found(), said)])
    shown = dict(zip(LAYOUT_HEADINGS, row, strict=True))
    assert shown["layout"] == "TP2 SP"
    assert shown["s a step"] == "2.00"
    assert "40,000 (-18%)" in row
    assert shown["predicted GiB"] == "11.1 (-1.0%)"
    alone = replace(found(replace(MIX, gpus=1, parallel={}), [80.0]), step_ms=1900.0, tokens=4 * 16384)
    two = found(replace(MIX, parallel={}))
    rows = [dict(zip(SCALING_HEADINGS, row, strict=True)) for row in scaling_rows([(alone, said), (two, said)])]
    assert [row["of one GPU's"] for row in rows] == ["100.0%", "95.0%"]
    in_8_bits = [replace(one, spread=replace(one.spread, precision="delayed")) for one in (alone, two)]
    mixed = [(one, said) for pair in zip((alone, two), in_8_bits, strict=True) for one in pair]
    assert [row[0] for row in scaling_rows(mixed)] == ["bf16", "bf16", "delayed", "delayed"]
    assert [row["layout"] for row in rows] == ["DP1", "DP2"]


def test_the_table_of_dealing_by_hand() -> None:
    """Of two steps the busiest rank has 3 of 4, then 5 of 8: 50% and 25% more than the mean."""
    said = Prediction(1, 1, 1, 0)
    in_order = replace(found(replace(MIX, parallel={"dealing": "in_order"})), flops_of_ranks=[[3, 3], [1, 5]])
    evenly = replace(
        found(replace(MIX, parallel={"dealing": "evenly"}), step_ms=1600.0), flops_of_ranks=[[2, 4], [2, 4]]
    )
    rows = [dict(zip(DEALING_HEADINGS, row, strict=True)) for row in dealing_rows([(in_order, said), (evenly, said)])]
    assert [row["busiest rank's FLOPs"] for row in rows] == ["+37.5%", "+0.0%"]
    assert [row["of dealt in order"] for row in rows] == ["100.0%", "125.0%"]
    assert [row["layout"] for row in rows] == ["DP2", "DP2, dealt evenly"]


def test_real_documents_are_packed_and_dealt() -> None:
    """Nothing of a document is lost, no pack is too full, and both ways deal the same sequences."""
    assert sum(map(sum, real_packs(32768))) == sum(real_lengths()) and max(map(sum, real_packs(32768))) <= 32768
    architecture, case = Architecture.from_preset("tiny"), replace(CASES["32768-real"], micro_batches=8)
    dealt = {
        dealing: [
            batches(case, architecture, DataPlace(data_rank=rank, data_size=2), dealing=dealing, first=8)
            for rank in range(2)
        ]
        for dealing in ("in_order", "evenly")
    }
    numbers = {way: [[batch.sequence for batch in rank] for rank in ranks] for way, ranks in dealt.items()}
    assert numbers["in_order"] == [[8, 10, 12, 14], [9, 11, 13, 15]]
    assert (
        sorted(itertools.chain(*numbers["evenly"])) == list(range(8, 16)) and numbers["evenly"] != numbers["in_order"]
    )
    for batch in itertools.chain(*dealt["evenly"]):
        other = dealt["in_order"][batch.sequence % 2][(batch.sequence - 8) // 2]
        assert torch.equal(batch.tokens_S, other.tokens_S) and torch.equal(batch.cu_seqlens, other.cu_seqlens)
        assert batch.cu_seqlens.diff().tolist()[: len(real_packs(32768)[batch.sequence])] == list(
            real_packs(32768)[batch.sequence]
        )


def test_what_was_not_measured_is_said() -> None:
    said = Prediction(1, 1, 1, 0)
    failed = Found(MIX, "failed", "exit code 1: out of memory")
    assert layout_rows([(failed, said)]) == []
    assert remarks([(failed, said)]) == [f"{MIX.title}: failed: exit code 1: out of memory"]


@pytest.mark.parametrize(
    ("parallel", "gpus", "label"),
    [
        ({}, 1, "DP1"),
        ({"tensor": 2, "sequence": True}, 4, "TP2 SP DP2"),
        ({"pipeline": 2, "virtual": 4}, 2, "PP2 VP4"),
        ({"tensor": 2, "context": 2, "pipeline": 2}, 16, "TP2 CP2 PP2 DP2"),
    ],
)
def test_labels(parallel: dict[str, object], gpus: int, label: str) -> None:
    assert replace(MIX, parallel=parallel, gpus=gpus).label == label


@pytest.mark.parametrize("stage", STAGES)
def test_cases_are_like_the_stages(stage: str) -> None:
    """Same sequence length and trained parts as the stage's file."""
    config, case = load_stage(ROOT / "examples" / f"{stage}.yaml"), CASES[STAGES[stage]]
    assert (case.sequence_length, case.train) == (config.sequence_length, config.train)


def test_ranks_share_a_step() -> None:
    """Sequences over data-parallel ranks, images over shares, tokens over context-parallel ranks: all once."""
    architecture, case = Architecture.from_preset("tiny"), small(replace(CASES["16384-mix"], micro_batches=6))
    whole = batches(case, architecture)
    assert sum(batch.images.num_patches for batch in whole) > 0
    by_data = [batches(case, architecture, DataPlace(data_rank=rank, data_size=2)) for rank in range(2)]
    assert [batch.sequence for batch in by_data[1]] == [1, 3, 5]
    for batch in [*by_data[0], *by_data[1]]:
        assert torch.equal(batch.tokens_S, whole[batch.sequence].tokens_S)
    by_share = [batches(case, architecture, DataPlace(share=share, shares=3)) for share in range(3)]
    for number, batch in enumerate(whole):
        parts = [part[number].images.patches_PC for part in by_share]
        assert sorted(torch.cat(parts).sum(1).tolist()) == sorted(batch.images.patches_PC.sum(1).tolist())
    for context in range(2):
        for one, all_of_it in zip(
            batches(case, architecture, DataPlace(context=context, contexts=2)), whole, strict=True
        ):
            owned = owned_positions(case.sequence_length, context, 2)
            assert torch.equal(one.tokens_S, all_of_it.tokens_S[owned])


def test_a_rank_that_fails_ends_its_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sometimes.py").write_text(
        "import os, sys, time\nsys.stdin.readline()\n"
        "if os.environ['RANK'] == '1': sys.exit('the second rank has no memory')\ntime.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    logs = tmp_path / "logs"
    logs.mkdir()
    assert Processes("sometimes", "one", {}, logs, 2).run(300) == "exit code 1: the second rank has no memory"


def test_a_measurement_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last line of output stands in the report."""
    (tmp_path / "forever.py").write_text("import time\nprint('model: 3.2 s', flush=True)\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    processes = Processes("forever", "one", {}, tmp_path)
    deadline = time.monotonic() + 300
    while not (tmp_path / "one.0.log").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    found = str(processes.run(1))
    assert "took longer than 1 s" in found and "model: 3.2 s" in found


class Stub:
    """Processes that fail at the measurement of ``delayed``, with what was found before."""

    started: ClassVar[list[list[str]]] = []

    def __init__(self, module: str, name: str, specification: dict[str, Any], logs: Path, ranks: int) -> None:
        self.spreads = [Spread(**one) for one in specification["spreads"]]
        self.started.append([one.precision for one in self.spreads])

    def run(self, limit: float) -> dict[str, Any] | str:
        before = list(itertools.takewhile(lambda one: one.precision != "delayed", self.spreads))
        rows = [asdict(found(one)) for one in before]
        return {"found": rows, "environment": {"device": "one"}} if rows else self.reason()

    def reason(self) -> str:
        return "exit code 1: out of memory"

    def stop(self) -> None: ...


def test_a_measurement_that_fails_does_not_end_those_that_share_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stub, "started", [])
    monkeypatch.setattr("benchmarks.spread.Processes", Stub)
    alone = replace(MIX, parallel={}, gpus=1)
    plan = [replace(alone, precision=precision) for precision in ("bf16", "delayed", "tensorwise", "blockwise")]
    plan += [MIX, replace(MIX, precision="delayed")]
    results = list(measure_spreads(plan, 1, tmp_path, None, 60))
    assert [(one.spread, one.status) for one, _ in results] == [
        (spread, "failed" if spread.precision == "delayed" else "measured") for spread in plan
    ]
    assert Stub.started == [
        ["bf16", "delayed", "tensorwise", "blockwise"],
        ["bf16", "delayed"],
        ["tensorwise", "blockwise"],
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_logs_are_left_where_a_measurement_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails: bool
) -> None:
    monkeypatch.setattr(Stub, "started", [])
    monkeypatch.setattr("benchmarks.spread.Processes", Stub)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if fails:
        monkeypatch.setattr(Stub, "run", lambda self, limit: self.reason())
    options = ["--tiny", "--gpus=1", "--gpu=h200", "--layers=2"]
    assert scaling.main([*options, f"--output={tmp_path / 'results'}"]) == int(fails)
    left = list(tmp_path.glob("benchmark-*"))
    assert len(left) == int(fails) and all(f"logs in {folder}\n" in capsys.readouterr().err for folder in left)


def test_the_plan_for_eight_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--gpus=8", "--gpu=h200", "--stages=cpt_stage2", "--best=2", "--precision=bf16,tensorwise"]
    assert layouts.main([*options, "--dry-run"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│ 16384-mix")]
    assert len(rows) == 4


def test_what_the_plan_chooses_is_what_is_measured() -> None:
    """On two H200 CPT-1 fits with remade 8-bit weights and inputs on the host, and neither is lost on the way."""
    for options, weights in (([], "remade"), (["--fp8-weights=kept"], "kept")):
        parser = argparse.ArgumentParser()
        parser.add_argument("--precision", default="delayed")
        parser.add_argument("--tiny", action="store_true")
        layouts._add_options(parser.add_argument_group("what"))
        arguments = parser.parse_args(["--stages=cpt_stage1", "--best=1", *options])
        ((spread, prediction),) = layouts._plan(arguments, 2, hardware("h200"))
        config = spread.config()
        assert (config.precision.fp8_weights, config.recompute.mode, config.recompute.inputs) == (
            weights, "full", "host"
        )  # fmt: skip
        assert prediction.peak < 133 * 2**30 and spread.recomputation == "full, inputs on the host"


def test_a_plan_of_given_layouts(capsys: pytest.CaptureFixture[str]) -> None:
    """What is named is planned, and not the plan's own best; titles say what is unusual."""
    tensor = "{tensor: 2, sequence: true}"
    options = [f"--parallel={tensor}", f"--parallel={tensor[:-1]}, tensor_overlap: true}}", "--recompute=full:40"]
    options += ["--host=auto", "--fp8-weights=remade", "--precision=bf16,delayed", "--stages=sft", "--layers=48"]
    assert layouts.main(["--gpus=2", "--gpu=h200", "--dry-run", *options]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│ 32768-sft")]
    shown = [[cell.strip() for cell in row.split("│")[3:6]] for row in rows]
    host = ", states on the host: auto"
    assert shown == [
        [f"TP2 SP{overlapped}{host}{weights}", "full, 40", precision]
        for precision, weights in (("bf16", ""), ("delayed", ", 8-bit weights remade"))
        for overlapped in ("", " overlapped")
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--gpus=1", "--gpu=h100", "--stages=sft", "--dry-run"],
            "no layout of sft with 48 layers in bf16 fits",
        ),
        (["--stages=stf", "--gpus=8", "--gpu=h200", "--dry-run"], "there is no 'stf'"),
        (["--gpus=8"], "this host shows"),
        (["--gpus=2", "--gpu=h200", "--dry-run", "--parallel={tensor: 3}"], "parallel.tensor=3 does not divide"),
        (["--gpus=2", "--gpu=h200", "--dry-run", "--parallel=tensor"], "--parallel=tensor"),
        (["--gpus=2", "--gpu=h200", "--dry-run", "--parallel={}", "--recompute=most"], "--recompute=most"),
        (["--gpus=2", "--gpu=h200", "--dry-run", "--recompute=full"], "--recompute=full is given without --parallel"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert layouts.main(options) == 2
    assert said in capsys.readouterr().err


def test_layouts_of_short_sequences_in_miniature(tmp_path: Path) -> None:
    """The command that measures the host's time, on the CPU: context parallelism beside none."""
    options = ["--tiny", "--gpus=2", "--layers=2", "--stages=cpt_stage2", "--tokens=32", "--sequences=2", "--steps=1"]
    options += ["--parallel={}", "--parallel={context: 2}", f"--output={tmp_path}"]
    done = subprocess.run([sys.executable, layouts.__file__, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (written,) = tmp_path.glob("layouts-*.json")
    shown = [Found.from_json(row["found"]) for row in json.loads(written.read_text())["measurements"]]
    assert [one.spread.label for one in shown] == ["DP2, sequences of 32", "CP2, sequences of 32"]
    assert {one.tokens for one in shown} == {64} and [len(one.divisions) for one in shown] == [2, 2]
    assert shown[1].loss == pytest.approx(shown[0].loss, rel=1e-5)


def test_dealing_in_miniature(tmp_path: Path) -> None:
    options = ["--tiny", "--gpus=2", "--layers=2", "--different-steps=2", "--steps=1", f"--output={tmp_path}"]
    done = subprocess.run([sys.executable, dealing.__file__, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (written,) = tmp_path.glob("dealing-*.json")
    in_order, evenly = (Found.from_json(row["found"]) for row in json.loads(written.read_text())["measurements"])
    assert in_order.seconds["imports"] > 0 and "imports" not in evenly.seconds and evenly.seconds["timed steps"] > 0
    assert evenly.flops == in_order.flops and evenly.tokens == in_order.tokens
    assert evenly.excess_flops <= in_order.excess_flops
    assert evenly.loss == pytest.approx(in_order.loss, rel=1e-5)
    assert "3,222 documents of 18.4 M tokens" in written.with_suffix(".md").read_text()


def test_scaling_in_miniature(tmp_path: Path) -> None:
    options = ["--tiny", "--gpus=2", "--layers=2", "--micro-batches=2", "--steps=1", f"--output={tmp_path}"]
    command = [sys.executable, str(scaling.__file__), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (written,) = tmp_path.glob("scaling-*.json")
    rows = [row["found"] for row in json.loads(written.read_text())["measurements"]]
    assert [(row["status"], row["spread"]["gpus"], len(row["ranks"])) for row in rows] == [
        ("measured", 1, 1),
        ("measured", 2, 2),
    ]
    # Twice the sequences on twice the ranks; the same first two, and the same random weights.
    assert rows[1]["tokens"] == 2 * rows[0]["tokens"]
    assert rows[1]["flops"] == pytest.approx(2 * rows[0]["flops"])
    assert rows[1]["loss"] == pytest.approx(rows[0]["loss"], rel=0.02)
    assert "| DP2 |" in written.with_suffix(".md").read_text()
