"""The arithmetic between measured slices and published figures, against numbers worked out by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import step
from benchmarks.processes import Planned, _following
from benchmarks.report import text_of
from benchmarks.step_report import (
    MEMORY_HEADINGS,
    SPEED_HEADINGS,
    Line,
    Measurement,
    figure,
    grouped,
    memory_rows,
    newest,
    page,
    remarks,
    speed_rows,
)


def slice_at(layers: int, **changes: object) -> Measurement:
    """A device on which a layer takes 20 ms a micro-batch and 2 a step, the rest 50 and 30; 8 micro-batches."""
    values: dict[str, object] = {
        "subject": "ours-bf16",
        "case": "8192",
        "layers": layers,
        "status": "measured",
        "micro_batches": 8,
        "tokens": 8192,
        "flops": (33.0 + 13.0 * layers) * 1e12,
        "full_depth_flops": (33.0 + 13.0 * 48) * 1e12,
        "step_ms": 8 * (50 + 20 * layers) + 30 + 2 * layers,
        "per_step_ms": 30 + 2 * layers,
    }
    return Measurement.from_json(values | changes)


def test_line_through_two_points() -> None:
    line = Line.through((4, 130.0), (8, 210.0))
    assert (line.per_layer, line.rest, line.at(48)) == (20.0, 50.0, 1010.0)


def test_figures_of_the_whole_model() -> None:
    found = figure([slice_at(8), slice_at(4)])
    assert found is not None
    assert (found.passes.per_layer, found.passes.rest) == pytest.approx((20, 50))
    # 48 layers: 960 + 50 ms a micro-batch, and an eighth of 126 ms.
    assert found.whole.at(48) == pytest.approx(1025.75)
    assert found.tokens_per_second == pytest.approx(8192 / 1.02575)
    assert found.tflops == pytest.approx(657 / 1.02575)


def test_slice_counts_the_optimizer() -> None:
    assert slice_at(8).tflops == pytest.approx(137 / ((8 * 210 + 46) / 8 / 1e3))


def test_two_depths_are_needed_and_the_deepest_count() -> None:
    assert figure([slice_at(4)]) is None
    assert figure([slice_at(4), slice_at(8, status="failed")]) is None
    found = figure([slice_at(4), slice_at(2, step_ms=1e9), slice_at(8)])
    assert found is not None
    assert (found.low.layers, found.high.layers) == (4, 8)


def test_rows_have_the_columns_that_are_headed() -> None:
    measurements = [
        slice_at(4),
        slice_at(8, memory=dict.fromkeys(("weights", "main gradients", "optimizer state", "peak"), 2**30)
                 | {"activations and rest": 2**31}),
        slice_at(4, subject="liger-bf16", status="not possible", reason="no kernels"),
    ]  # fmt: skip
    speed, memory = speed_rows(measurements), memory_rows(measurements)
    assert [len(row) for row in speed] == [len(SPEED_HEADINGS)] * 2
    assert speed[0][2:8] == ["8", "20.00", "50.0", "46 at 8", "7,986", "641"]
    assert speed[1][2:] == ["-"] * 8
    assert memory == [["8192", "ours-bf16", "8", "1.0", "1.0", "1.0", "2.0", "1.0"]]
    assert len(memory[0]) == len(MEMORY_HEADINGS)


def test_remarks_tell_reasons_and_other_depths() -> None:
    other = [slice_at(layers, case="32768") for layers in (2, 4)]
    failed = slice_at(8, case="32768", status="failed", reason="out of memory: of all things")
    said = remarks([slice_at(4), slice_at(8), *other, failed])
    assert said == [
        "32768, ours-bf16, 8 layers: failed: out of memory: of all things",
        "32768, ours-bf16: from 2 and 4 layers",
    ]


def test_remarks_tell_losses_that_should_be_equal() -> None:
    ours, peer = slice_at(8, loss=10.2), slice_at(8, subject="megatron-bf16", loss=10.0)
    other_arithmetic = slice_at(8, subject="liger-bf16", loss=12.0)
    assert remarks([ours, peer, other_arithmetic]) == [
        "8192, 8 layers: loss 10.200 of ours-bf16, 10.000 of megatron-bf16"
    ]
    assert remarks([slice_at(8, loss=10.05), peer]) == []
    with_images = slice_at(8, loss=10.2, flops=99e12)
    assert remarks([with_images, peer]) == []


def test_the_newest_measurement_counts(tmp_path: Path) -> None:
    for name, step_ms, status in (("1", 1.0, "measured"), ("2", 2.0, "measured"), ("3", 3.0, "failed")):
        one = {"subject": "ours-bf16", "case": "8192", "layers": 4, "status": status, "step_ms": step_ms}
        (tmp_path / f"step-{name}.json").write_text(json.dumps({"measurements": [one]}))
    assert [one.step_ms for one in newest(tmp_path)] == [2.0]


def test_a_whole_model_that_was_measured_needs_no_slices() -> None:
    (row,) = speed_rows([slice_at(48, step_ms=8000.0)])
    cells = dict(zip(SPEED_HEADINGS, row, strict=True))
    assert (cells["tokens/s, 48 layers"], cells["TFLOP/s, 48 layers"]) == ("8,192", "657")


def test_groups_keep_the_order_of_appearance() -> None:
    names = list(grouped([slice_at(4, case="b"), slice_at(4, case="a"), slice_at(8, case="b")]))
    assert names == [("b", "ours-bf16"), ("a", "ours-bf16")]


def test_page_is_made_from_the_json_alone() -> None:
    record = {
        "benchmark": "step", "date": "2026-01-02 03:04", "command": "python benchmarks/step.py", "commit": "abc",
        "dirty": True, "hardware": {"device": "A GPU", "count": 1, "memory_gib": 1, "driver": "1.2"},
        "versions": {"torch": "9"}, "steps": 3,
        "measurements": [
            {"subject": "ours-bf16", "case": "8192", "layers": 4, "status": "failed", "reason": "why"},
            {"subject": "ours-bf16", "case": "8192", "layers": 2, "status": "measured", "step_ms": 1.0},
        ],
    }  # fmt: skip
    text = text_of(record, page(json.loads(json.dumps(record))))
    assert "commit: abc with changes that are not committed" in text
    assert "A GPU, 1 GiB, driver 1.2" in text
    assert "2 and 4 layers; median of 3 steps" in text
    assert "- 8192, ours-bf16, 4 layers: failed: why" in text
    assert page(record).measured == ["8192, ours-bf16, 2 layers"]


def test_a_slice_that_does_not_fit_is_replaced_by_a_shallower_one() -> None:
    plan = [Planned("ours-bf16", "8192", layers) for layers in (4, 8)]
    later = [Planned("liger-bf16", "8192", 4)]
    full = {"status": "failed", "reason": "out of memory: CUDA"}
    assert _following(plan[1], plan, later, full) == [Planned("ours-bf16", "8192", 2), *later]
    assert _following(plan[0], plan, [plan[1], *later], full) == [plan[1], *later]
    assert _following(plan[1], plan, later, {"status": "failed", "reason": "a defect"}) == later
    impossible = {"status": "not possible", "reason": "no kernels"}
    assert _following(plan[0], plan, [plan[1], *later], impossible) == later


def test_one_measurement_on_the_cpu(tmp_path: Path) -> None:
    """The whole way of a figure in miniature: the command line, a process per depth, the files."""
    root = Path(__file__).resolve().parents[3]
    command = [
        sys.executable,
        "benchmarks/step.py",
        "--tiny",
        "--cases",
        "16384-mix",
        "--layers",
        "1,2",
        "--steps",
        "1",
    ]
    chosen = ["--subjects", "ours-bf16,megatron-bf16", "--output", str(tmp_path)]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    place = {**os.environ, "TMPDIR": str(temporary)}
    done = subprocess.run([*command, *chosen], cwd=root, env=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(temporary.glob("benchmark-*"))
    (written,) = tmp_path.glob("step-*.json")
    record = json.loads(written.read_text())
    status = [(one["subject"], one["layers"], one["status"]) for one in record["measurements"]]
    assert status == [
        ("ours-bf16", 1, "measured"), ("ours-bf16", 2, "measured"), ("megatron-bf16", 1, "not possible"),
    ]  # fmt: skip
    one = record["measurements"][0]
    assert one["micro_batches"] == 10
    assert one["tokens"] == 256
    assert 5 < one["loss"] < 6  # the logarithm of 256 entries
    assert (tmp_path / written.name.replace(".json", ".md")).read_text().count("| 16384-mix |") == 2


@pytest.mark.parametrize(("option", "says"), [(["--cases", "9"], "there is no '9'"), ([], "no CUDA device")])
def test_what_cannot_be_run_is_refused(option: list[str], says: str, capsys: pytest.CaptureFixture[str],
                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(step.torch.cuda, "is_available", lambda: False)
    assert step.main(option) == 2
    assert says in capsys.readouterr().err


def test_dry_run_lists_and_measures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert step.main(["--dry-run", "--cases", "8192", "--subjects", "ours-bf16"]) == 0
    assert capsys.readouterr().out.splitlines() == ["8192, ours-bf16, 4 layers", "8192, ours-bf16, 8 layers"]
