"""The whole model on one GPU: figures composed by hand, and the command tried in miniature on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import measure_one_gpu, one_gpu
from benchmarks.one_gpu_report import OneGpu, memory_rows, peer_rows, plan_rows, remarks, speed_rows, update_traffic
from benchmarks.processes import ROOT, Planned
from benchmarks.step_report import Measurement

ONE = OneGpu(
    case="8192", precision="tensorwise", layers=48, status="measured", parameters=10**9, host_bytes=6 * 10**9,
    state_bytes=10**10, weight_bytes=2 * 10**9, gradient_bytes=4 * 10**9, begin_s=70.0, losses=(12.0, 11.5),
    tokens=8192, flops=8192 * 9e10, micro_batch_ms=1000.0, per_step_ms=2400.0, update_ms=120.0, whole=16,
    whole_ms=18_800.0, peak=130 * 2**30, predicted_peak=131.0 * 2**30, input_bytes=3 * 2**30, real_ms=(4400.0, 4399.0),
    predicted_micro_batch_ms=1010.0, predicted_per_step_ms=2700.0,
)  # fmt: skip


def test_figures_are_composed_of_their_parts() -> None:
    assert ONE.step_ms(16) == 18_400.0 and ONE.off == pytest.approx(400 / 18_400)
    # 64 micro-batches and what a step takes once, in 66.4 s.
    assert ONE.tokens_per_second(1 << 19) == pytest.approx(2**19 / 66.4)
    assert ONE.tflops(1 << 19) == pytest.approx(2**19 / 66.4 * 9e10 / 1e12)
    assert ONE.link == pytest.approx(50.0) and ONE.bytes_a_parameter == (16.0, 10.0)
    assert "2.2% off" in remarks([ONE])[0].replace("+", "")


def test_one_disturbed_update_moves_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three micro-batches of 4 s and 2 s besides; one of the updates takes a second longer."""
    updates = iter([2.0, 3.0, 2.0])
    monkeypatch.setattr(measure_one_gpu, "seconds_of_step", lambda _, given, __: (4.0 * len(given) + 2.0, None))
    subject = SimpleNamespace(update_seconds=lambda with_norm: next(updates) if with_norm else 1.9)
    assert measure_one_gpu._parts(subject, [object()] * 3, 1) == (4.0, 2.0)  # type: ignore[arg-type,list-item]


def test_beside_the_figure_of_the_slices() -> None:
    slices = [
        Measurement("ours-tensorwise", "8192", layers, "measured", micro_batches=1, tokens=8192, flops=1.0,
                    full_depth_flops=8192 * 9e10, step_ms=100.0 + 15 * layers)
        for layers in (4, 8)
    ]  # fmt: skip
    # 100 ms and 48 times 15 ms.
    whole = 8192 * 9e10 / 0.82 / 1e12
    row = speed_rows([ONE], slices)[0]
    assert f"{ONE.tflops(1 << 19) / whole:.2f} of {whole:.0f}" in row and row[-1] == "+2.2% at 16"
    assert speed_rows([ONE], slices[:1])[0][-2] == "-"
    assert memory_rows([ONE])[0][2:9] == ["5.6", "60%", "70", "16.0", "10.0", "3.0", "130.0"]


def test_beside_what_the_plan_says() -> None:
    """One row for each prediction; what is further off than the project allows itself is remarked on."""
    rows = [row[2:] for row in plan_rows([ONE])]
    assert rows == [
        ["ms a micro-batch", "1,000.0", "1,010.0", "+1.0%"],
        ["ms a step besides", "2,400.0", "2,700.0", "+12.5%"],
        ["peak, GiB", "130.0", "131.0", "+0.8%"],
    ]
    assert remarks([ONE])[1:] == [f"{ONE.title}: the plan is +12.5% off in ms a step besides"]
    assert plan_rows([OneGpu("8192", "bf16", 48, "measured", micro_batch_ms=5.0, tokens=1)]) == []


def test_beside_a_peer() -> None:
    """Composed as ours: 64 micro-batches of 1.4 s and 1.6 s once, against 66.4 s."""
    peer = Measurement("liger-float8", "8192", 48, "measured", micro_batches=4, tokens=8192, full_depth_flops=8192e10,
                       step_ms=7200.0, per_step_ms=1600.0, memory={"peak": 120 * 2**30})  # fmt: skip
    (row,) = peer_rows([peer, Measurement("liger-bf16", "8192", 48, "failed", "out of memory")], [ONE])
    assert row[2:5] == ["1400", "1600", f"{2**19 / 91.2:,.0f}"] and row[6:] == ["120.0", f"{91.2 / 66.4:.2f} times"]
    assert peer_rows([peer], [])[0][-1] == "-"
    failed = Measurement("liger-bf16", "8192", 48, "failed", "out of memory")
    assert remarks([], [failed]) == ["8192, liger-bf16, 48 layers: failed: out of memory"]


def test_what_an_update_moves() -> None:
    """At 4260 GB/s, 10 ms are 42.6 GB."""
    one = Measurement("ours-bf16", "8192", 8, "measured", parameters=10**9, update_ms=10.0)
    assert "10.0 ms, 42.6 bytes a parameter; the plan says 38" in update_traffic([one])[0]
    assert update_traffic([Measurement("ours-bf16", "16384-mix", 8, "measured", parameters=10**9)]) == []


def test_what_failed_is_named_and_has_no_row() -> None:
    failed = OneGpu("8192", "bf16", 48, "failed", "out of memory")
    assert remarks([failed]) == ["8192, bf16, 48 layers, all recomputed, host auto: failed: out of memory"]
    assert speed_rows([failed], []) == memory_rows([failed]) == []


def test_in_miniature_on_the_cpu(tmp_path: Path) -> None:
    words = ["--tiny", "--precision", "bf16", "--layers", "2", "--host", "60%", "--slices", "1,2", "--steps", "2"]
    words += ["--more", "2", "--whole", "3", "--brief", "--output", str(tmp_path), "recompute.inputs=host"]
    command = [sys.executable, str(ROOT / "benchmarks" / "one_gpu.py"), *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (written,) = tmp_path.glob("one_gpu-cpu-*.json")
    record = json.loads(written.read_text(encoding="utf-8"))
    (measured,) = record["measurements"]
    assert measured["status"] == "measured" and measured["host_bytes"] > 0.59 * measured["state_bytes"]
    assert len(measured["losses"]) == len(measured["real_ms"]) == 2 and len(record["slices"]) == 2
    assert measured["input_bytes"] > 0 and all(one["update_ms"] > 0 for one in record["slices"])
    assert one_gpu.page(record).measured == ["8192, bf16, 2 layers, all recomputed, host 0.6, recompute.inputs=host"]


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--host", "most"], "--host most: 'most' is not a fraction"), (["--more", "1"], "--more=1 is no more than one"),
     (["--precision", "int4"], "int4"), (["--peers", "ours-bf16"], "ours-bf16"),
     (["recompute.mode=none", "recompute.inputs=host"], "inputs=host has no meaning")],
)  # fmt: skip
def test_wrong_words_are_refused_before_anything_runs(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert one_gpu.main([*words, "--dry-run"]) == 2
    assert said in capsys.readouterr().err


def test_peers_share_one_budget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And of each kind of sequences, those behind the first that is measured are not begun."""
    seconds, left = [0.0], []

    def measured(plan: list[Planned], options: object, logs: Path, budget: float, limit: float) -> list[dict[str, Any]]:
        seconds[0] += 40.0
        left.append(budget)
        return [{"measurement": {"status": "measured" if plan[0].subject == "b" else "failed"}}]

    monkeypatch.setattr(one_gpu, "measure_all", measured)
    monkeypatch.setattr(one_gpu, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    peers = [[Planned(name, case, 48) for name in "abc"] for case in ("8192", "32768-sft")]
    found = [one["measurement"]["status"] for one in one_gpu._first_that_starts(peers, {}, tmp_path, 100.0, 10.0)]
    assert found == ["failed", "measured"] * 2
    assert left == [100.0, 60.0, 20.0, 0.0]
