"""What smaller forms of the optimizer's numbers take and cost in a plan, and which of them ``auto`` means."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from megatron_apriel.config.load import load_stage
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.config.training_sections import OptimizerSection
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.choosing_moments import SMALLER, chosen_moments, with_smaller_states
from megatron_apriel.planning.dry_run import print_plan
from megatron_apriel.planning.hardware import KINDS
from megatron_apriel.planning.layouts import GIB, candidates
from megatron_apriel.planning.memory import PIECE_NUMBERS, rank_memory
from megatron_apriel.planning.plan_tables import states_table
from megatron_apriel.planning.plan_words import further_settings
from megatron_apriel.planning.step_time import step_time
from megatron_apriel.planning.workload import Workload
from megatron_apriel.testing.scripts import load_script
from megatron_apriel.testing.stages import small_stage

ROOT = Path(__file__).resolve().parents[3]
APRIEL = Architecture(Architecture.from_preset("apriel-15b").decoder)
DECODER = APRIEL.decoder
MATRICES = 48 * (DECODER.layer_parameters - 2 * DECODER.hidden_size)
VOCABULARY = 2 * DECODER.embedding_parameters
ALL = APRIEL.decoder.parameters
H200 = KINDS["h200"]
WORK = Workload(8192, 0)
SMALLEST = SMALLER["the same, 24-bit gradients"]


def stage(host: float | str = 0.0, **forms: str) -> StageConfig:
    return small_stage(
        8192,
        64,
        recompute={"mode": "full"},
        precision={"fp8": "tensorwise", "fp8_weights": "remade"},
        optimizer={"peak": 1e-5, "host": host, **forms},
    )


@pytest.mark.parametrize(
    ("forms", "matrix", "vocabulary"),
    [
        ({}, 10, 10),
        ({"moments": "bfloat16"}, 6, 6),
        ({"moments": "int8"}, 4.125, 6),
        ({"moments": "int8", "master": "24bit"}, 3.125, 5),
        ({"master": "24bit"}, 9, 9),
    ],
)
def test_bytes_of_states(forms: dict[str, str], matrix: float, vocabulary: float) -> None:
    memory = rank_memory(stage(**forms), APRIEL, Layout(), 0)
    assert memory.optimizer == pytest.approx(matrix * MATRICES + vocabulary * VOCABULARY, rel=1e-3)
    assert memory.gradients == pytest.approx(4 * ALL, rel=1e-6)


def test_all_of_it_on_the_gpu_takes_at_most_8_and_a_half_bytes() -> None:
    """And room for one layer's gradients."""
    memory = rank_memory(stage(**SMALLEST), APRIEL, Layout(), 0)
    copies = 2 * MATRICES / 48
    room = 4 * MATRICES / 48
    assert memory.gradients == pytest.approx(3 * MATRICES + 4 * VOCABULARY + room, rel=1e-3)
    assert (memory.weights - copies + memory.gradients - room + memory.optimizer) / ALL <= 8.5
    assert memory.total < H200.available and memory.host == 0


def test_pieces_on_their_way_are_of_the_widest_form() -> None:
    whole, moved = (rank_memory(stage(host, **SMALLEST), APRIEL, Layout(), 0) for host in (0.0, 1.0))
    assert moved.optimizer == 3 * 5 * PIECE_NUMBERS and moved.host == whole.optimizer


def test_an_update_moves_less() -> None:
    def update(host: float, moments: str) -> float:
        return step_time(stage(host, moments=moments), APRIEL, Layout(), H200, WORK).optimizer

    assert update(1.0, "float32") - update(1.0, "bfloat16") == pytest.approx(4 * ALL / 50e9, rel=1e-3)
    assert update(0.0, "float32") - update(0.0, "bfloat16") == pytest.approx(8 * ALL / 4260e9, rel=1e-3)


def test_sums_in_24_bits_cost_time_in_every_micro_batch() -> None:
    exact, narrow = (step_time(stage(gradients=form), APRIEL, Layout(), H200, WORK) for form in ("float32", "24bit"))
    assert narrow.compute - exact.compute == pytest.approx(64 * 14 * MATRICES / 4260e9, rel=1e-3)


@pytest.mark.parametrize(
    ("host", "host_gib", "gpu_gib", "expected"),
    [
        ("auto", 104, 133, "float32"),
        ("auto", 60, 133, "bfloat16"),
        ("auto", 20, 133, "int8"),
        (0.0, 104, 300, "float32"),
        (0.0, 104, 200, "bfloat16"),
        (0.0, 104, 10, "int8"),
    ],
)
def test_auto_is_the_least_lossy_that_fits(host: float | str, host_gib: float, gpu_gib: float, expected: str) -> None:
    asked = stage(host, moments="auto")
    found = chosen_moments(asked, APRIEL, Layout(), gpu_gib * GIB, host_gib * GIB)
    assert found.optimizer.moments == expected
    exact = chosen_moments(stage(host), APRIEL, Layout(), gpu_gib * GIB, host_gib * GIB)
    assert exact.optimizer.moments == "float32", "never lossy unless it was asked for"


def test_a_plan_takes_narrow_moments_only_where_exact_ones_fit_nowhere() -> None:
    small = H200.model_copy(update={"host_memory": 60.0})
    for gpu, expected in ((H200, "float32"), (small, "bfloat16")):
        (best,) = candidates(stage("auto", moments="auto"), APRIEL, 1, gpu, WORK).fitting()
        assert best.config.optimizer.moments == expected
    words = further_settings(best, stage("auto", moments="auto"))
    assert words[0] == "optimizer.moments=bfloat16"


def test_auto_takes_no_more_of_the_host_than_the_stage_allows() -> None:
    optimizer = {"peak": 1e-5, "moments": "auto", "host": "auto", "host_memory": 60 * GIB}
    recompute = {"mode": "full"}
    limited = small_stage(8192, 64, optimizer=optimizer, recompute=recompute, precision={"fp8": "tensorwise"})
    output = io.StringIO()
    print_plan(limited, 1, architecture="apriel-15b", console=Console(file=output, width=200))
    text = " ".join(output.getvalue().split())
    assert "optimizer.moments=auto is float32 here" not in text
    assert "the first form that fits a GPU of 139 GiB and 60 GiB of the host" in text


def test_the_dry_run_says_what_auto_is() -> None:
    output = io.StringIO()
    print_plan(stage("auto", moments="auto"), 1, architecture="apriel-15b", console=Console(file=output, width=200))
    text = " ".join(output.getvalue().split())
    assert "optimizer.moments=auto is float32 here, the first form that fits a GPU of 139 GiB" in text


def test_where_less_splitting_is_needed_the_gain_is_shown() -> None:
    """Upscaling on eight H100: a layout that exact states do not leave room for is more than a tenth faster."""
    config = load_stage(ROOT / "examples" / "upscale.yaml", ["precision.fp8=tensorwise", "precision.fp8_weights=kept"])
    gpu, whole = KINDS["h100"], Architecture.from_preset("apriel-15b")
    work = Workload.of(config)
    best: dict[str, Any] = {"own": candidates(config, whole, 8, gpu, work).fitting()[0]}
    for name, smaller in with_smaller_states(config):
        assert isinstance(smaller, StageConfig)
        best[name] = candidates(smaller, whole, 8, gpu, work).fitting()[0]
    assert best["16-bit moments"].tokens_per_second > 1.1 * best["own"].tokens_per_second
    output = io.StringIO()
    Console(file=output, width=150).print(states_table(best | {"none": None}))
    gain = best["16-bit moments"].tokens_per_second / best["own"].tokens_per_second - 1
    assert f"{gain:+.1%}" in output.getvalue() and "does not fit" in output.getvalue()


def test_forms_that_a_run_would_refuse_are_not_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    plan = load_script("tools/plan.py")
    words = ["--gpus", "8", "--stage", str(ROOT / "examples" / "sft.yaml"), "--architecture", "apriel-15b"]
    assert plan.main([*words, "--compare-states", "optimizer.eps=1e-15"]) == 0
    table = capsys.readouterr().out.partition("What smaller optimizer states would give")[2]
    rows = {line.split("│")[1].strip(): line for line in table.splitlines() if line.startswith("│")}
    assert "refused" not in rows["16-bit moments"]
    assert all("refused" in rows[name] for name in SMALLER if name != "16-bit moments")
    assert "refused: 8-bit moments, 24-bit masters: moments=int8 needs eps of at least 1e-12, not 1e-15" in table


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"moments": "bfloat16", "betas": (0.9, 0.999)}, "needs betas of at most 0.99"),
        ({"moments": "auto", "betas": (0.9, 0.999)}, "needs betas of at most 0.99"),
        ({"moments": "int8", "eps": 1e-15}, "needs eps of at least 1e-12"),
        ({"eps": 1e-300}, "eps=1e-300 is below 1e-18"),
        ({"eps": 1e-19, "moments": "bfloat16"}, "eps=1e-19 is below 1e-18"),
        ({"moments": "fp8"}, "float32"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OptimizerSection(peak=1e-5, **settings)
    OptimizerSection(peak=1e-5, betas=(0.9, 0.999), eps=1e-15)
