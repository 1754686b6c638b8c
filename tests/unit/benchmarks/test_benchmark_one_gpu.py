"""The whole model on one GPU: figures composed by hand, and the command tried in miniature on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import one_gpu
from benchmarks.one_gpu_report import OneGpu, memory_rows, remarks, speed_rows
from benchmarks.processes import ROOT
from benchmarks.step_report import Measurement

ONE = OneGpu(
    case="8192", precision="tensorwise", layers=48, status="measured", parameters=10**9, host_bytes=6 * 10**9,
    state_bytes=10**10, weight_bytes=2 * 10**9, gradient_bytes=4 * 10**9, begin_s=70.0, losses=(12.0, 11.5),
    tokens=8192, flops=8192 * 9e10, micro_batch_ms=1000.0, per_step_ms=2400.0, update_ms=120.0, whole=16,
    whole_ms=18_800.0, peak=130 * 2**30, predicted_peak=131.0 * 2**30,
)  # fmt: skip


def test_figures_are_composed_of_their_parts() -> None:
    assert ONE.step_ms(16) == 18_400.0 and ONE.off == pytest.approx(400 / 18_400)
    # 64 micro-batches and what a step takes once, in 66.4 s.
    assert ONE.tokens_per_second(1 << 19) == pytest.approx(2**19 / 66.4)
    assert ONE.tflops(1 << 19) == pytest.approx(2**19 / 66.4 * 9e10 / 1e12)
    assert ONE.link == pytest.approx(50.0) and ONE.bytes_a_parameter == (16.0, 10.0)
    assert "2.2% off" in remarks([ONE])[0].replace("+", "")


def test_beside_the_figure_of_the_slices() -> None:
    slices = [
        Measurement("ours-tensorwise", "8192", layers, "measured", micro_batches=1, tokens=8192, flops=1.0,
                    full_depth_flops=8192 * 9e10, step_ms=100.0 + 15 * layers)
        for layers in (4, 8)
    ]  # fmt: skip
    # 100 ms and 48 times 15 ms.
    whole = 8192 * 9e10 / 0.82 / 1e12
    row = speed_rows([ONE], slices)[0]
    assert f"{ONE.tflops(1 << 19) / whole:.2f} of {whole:.0f}" in row
    assert speed_rows([ONE], slices[:1])[0][-2] == "-"
    assert memory_rows([ONE])[0][2:8] == ["5.6", "60%", "70", "16.0", "10.0", "130.0"]


def test_what_failed_is_named_and_has_no_row() -> None:
    failed = OneGpu("8192", "bf16", 48, "failed", "out of memory")
    assert remarks([failed]) == ["8192, bf16, 48 layers, all recomputed, host auto: failed: out of memory"]
    assert speed_rows([failed], []) == memory_rows([failed]) == []


def test_in_miniature_on_the_cpu(tmp_path: Path) -> None:
    words = ["--tiny", "--precision", "bf16", "--layers", "2", "--host", "60%", "--slices", "1,2", "--steps", "2"]
    words += ["--more", "2", "--whole", "3", "--output", str(tmp_path)]
    command = [sys.executable, str(ROOT / "benchmarks" / "one_gpu.py"), *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (written,) = tmp_path.glob("one_gpu-cpu-*.json")
    record = json.loads(written.read_text(encoding="utf-8"))
    (measured,) = record["measurements"]
    assert measured["status"] == "measured" and measured["host_bytes"] > 0.59 * measured["state_bytes"]
    assert len(measured["losses"]) == 2 and len(record["slices"]) == 2
    assert one_gpu.page(record).measured == ["8192, bf16, 2 layers, all recomputed, host 0.6"]


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--host", "most"], "--host most: 'most' is not a fraction"), (["--more", "1"], "--more=1 is no more than one"),
     (["--precision", "int4"], "int4")],
)  # fmt: skip
def test_wrong_words_are_refused_before_anything_runs(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert one_gpu.main([*words, "--dry-run"]) == 2
    assert said in capsys.readouterr().err
