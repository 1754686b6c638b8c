"""Where a plan puts the optimizer's states, what that takes on GPU and host, and what it says where nothing fits."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from megatron_apriel.config.load import load_stage
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.dry_run import print_plan
from megatron_apriel.planning.hardware import KINDS
from megatron_apriel.planning.layouts import GIB, Candidate, Candidates, candidates
from megatron_apriel.planning.memory import PIECE_NUMBERS, host_share, rank_memory
from megatron_apriel.planning.plan_words import further_settings, nothing_fits
from megatron_apriel.planning.step_time import step_time
from megatron_apriel.planning.workload import Workload
from megatron_apriel.testing.stages import small_stage

APRIEL = Architecture(Architecture.from_preset("apriel-15b").decoder)
H200 = KINDS["h200"]
ROOM = 3 * 10 * PIECE_NUMBERS
"""For three pieces on their way."""
WORK = Workload(8192, 0)
EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def stage(host: float | str = 0.0, **changes: Any) -> StageConfig:
    defaults = {"recompute": {"mode": "full"}, "precision": {"fp8": "tensorwise", "fp8_weights": "remade"}}
    return small_stage(8192, 64, **defaults | {"optimizer": {"peak": 1e-5, "host": host}} | changes)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_share_of_the_states_moves_to_the_host(share: float) -> None:
    whole, moved = (rank_memory(stage(host), APRIEL, Layout(), 0) for host in (0.0, share))
    assert whole.host == 0 and moved.host == pytest.approx(share * whole.optimizer)
    assert moved.total + moved.host == pytest.approx(whole.total + ROOM)


@pytest.mark.parametrize("gib", [130.0, 100.0])
def test_auto_moves_what_does_not_fit(gib: float) -> None:
    memory = rank_memory(stage("auto"), APRIEL, Layout(), 0, gib * GIB)
    assert memory.total == pytest.approx(gib * GIB)
    assert memory.host == pytest.approx(rank_memory(stage(), APRIEL, Layout(), 0).total + ROOM - gib * GIB)
    assert host_share(stage("auto"), APRIEL, Layout(), 0, gib * GIB) == pytest.approx(
        memory.host / rank_memory(stage(), APRIEL, Layout(), 0).optimizer
    )


def test_auto_moves_nothing_where_all_fits_and_no_more_than_all() -> None:
    assert host_share(stage("auto"), APRIEL, Layout(), 0, 300 * GIB) == 0.0
    assert host_share(stage("auto"), APRIEL, Layout(), 0, 50 * GIB) == 1.0
    assert host_share(stage("auto", train={"projector": 1}), APRIEL, Layout(), 0, GIB) == 0.0


def test_remade_copies_in_8_bits_are_those_of_the_layer_at_work() -> None:
    matrices = APRIEL.decoder.layer_parameters - 2 * APRIEL.decoder.hidden_size

    def copies(recompute: dict[str, Any], fp8_weights: str = "remade") -> float:
        config = stage(recompute=recompute, precision={"fp8": "tensorwise", "fp8_weights": fp8_weights})
        bf16 = stage(recompute=recompute, precision={"fp8": "none"})
        of = [rank_memory(each, APRIEL, Layout(), 0).weights for each in (config, bf16)]
        return (of[0] - of[1]) / 2 / matrices

    for recompute in ({"mode": "full"}, {"mode": "full", "layers": 40}, {"mode": "selective"}, {"mode": "none"}):
        assert copies(recompute) == pytest.approx(1)
    assert copies({"mode": "full"}, "kept") == copies({"mode": "none"}, "kept") == pytest.approx(48)


def test_an_update_takes_as_long_as_the_link() -> None:
    parameters = APRIEL.decoder.layer_parameters * 48 + 2 * APRIEL.decoder.embedding_parameters
    here, away = (step_time(stage(host), APRIEL, Layout(), H200, WORK) for host in (0.0, 1.0))
    assert away.optimizer == pytest.approx(10 * parameters / 50e9 + 4 * parameters / 4260e9, rel=1e-3)
    assert here.optimizer == pytest.approx(38 * parameters / 4260e9, rel=1e-3)
    assert away.compute == here.compute


def test_one_gpu_holds_the_whole_model() -> None:
    found = candidates(stage("auto"), APRIEL, 1, H200, WORK)
    (best,) = found.fitting()
    assert best.config.recompute.mode == "full"
    assert best.memory.total <= best.available + 1 and 85 < best.memory.host / GIB < 104
    small_host = H200.model_copy(update={"host_memory": 60.0})
    (nearest,) = candidates(stage("auto"), APRIEL, 1, small_host, WORK).missing()
    smallest = rank_memory(stage("auto"), APRIEL, Layout(), 0, H200.available)
    assert nearest.config.recompute.layers is None and nearest.over == pytest.approx(smallest.host - 60 * GIB)


@pytest.mark.parametrize("host_gib", [90.5, 104.0, 125.0])
def test_as_many_layers_are_left_out_as_the_host_has_room_for(host_gib: float) -> None:
    def fits(layers: int) -> bool:
        memory = rank_memory(
            stage("auto", recompute={"mode": "full", "layers": layers}), APRIEL, Layout(), 0, H200.available
        )
        return memory.host <= host_gib * GIB and memory.total <= H200.available

    gpu = H200.model_copy(update={"host_memory": host_gib})
    (best,) = candidates(stage("auto"), APRIEL, 1, gpu, WORK).fitting()
    assert best.config.recompute.layers == next(filter(fits, range(1, 48)), None)
    assert best.config.recompute.layers is None or 0 < best.config.recompute.layers < 48


def test_no_layer_is_left_out_where_the_longer_update_costs_more() -> None:
    """One micro-batch a step: 5 ms less of it, 25 ms more of an update."""
    one = stage("auto", batch_tokens=8192)
    (best,) = candidates(one, APRIEL, 1, H200, WORK).fitting()
    assert best.time.micro_batches == 1 and best.config.recompute.layers is None


def test_one_gpu_is_given_what_a_stage_does_not_say() -> None:
    silent = small_stage(8192, 64, precision={"fp8": "tensorwise"}, train={"decoder": 1})
    (best,) = candidates(silent, APRIEL, 1, H200, WORK).fitting()
    assert best.memory.host > 0 and best.config.precision.fp8_weights == "remade"
    assert further_settings(best, silent) == ["optimizer.host=auto", "precision.fp8_weights=remade"]
    assert not candidates(stage(0.0), APRIEL, 1, H200, WORK).fitting()
    kept = stage("auto", precision={"fp8": "tensorwise", "fp8_weights": "kept"})
    assert all(one.config.precision.fp8_weights == "kept" for one in candidates(kept, APRIEL, 1, H200, WORK).accepted)
    background = small_stage(8192, 64, checkpoint={"background": True})
    assert all(one.memory.host == 0 for one in candidates(background, APRIEL, 1, H200, WORK).accepted)


def test_several_gpus_may_remake_copies_in_8_bits_and_keep_states_to_themselves() -> None:
    silent = small_stage(8192, 64, precision={"fp8": "tensorwise"}, train={"decoder": 1})
    found = candidates(silent, APRIEL, 2, H200, WORK).accepted
    assert {one.config.precision.fp8_weights for one in found} == {"kept", "remade"}
    for one in found:
        assert one.config.optimizer == silent.optimizer and one.config.recompute.layers is None


def test_remade_copies_spare_a_split() -> None:
    """CPT-1 on eight H200. Kept, they need tensor parallelism; remade, only sequences and layers are split."""
    architecture = Architecture.from_preset("apriel-15b")

    def fastest(*words: str) -> Candidate:
        stage = load_stage(EXAMPLES / "cpt_stage1.yaml", ["precision.fp8=tensorwise", *words])
        return candidates(stage, architecture, 8, H200, Workload.of(stage)).fitting()[0]

    kept, free = fastest("precision.fp8_weights=kept"), fastest()
    assert kept.layout.tensor > 1 and free.layout.tensor == 1
    assert free.config.precision.fp8_weights == "remade"
    assert free.tokens_per_second > 1.05 * kept.tokens_per_second


def test_what_would_help_is_said() -> None:
    found = candidates(stage(), APRIEL, 1, H200, WORK)
    assert "What helps: precision.fp8=none" in str(nothing_fits(found, 1, H200))
    assert "optimizer.host=auto" in str(nothing_fits(found, 1, H200))
    small_host = H200.model_copy(update={"host_memory": 60.0})
    found = candidates(stage("auto"), APRIEL, 1, small_host, WORK)
    said = str(nothing_fits(found, 1, small_host))
    assert "GiB of 60.0 GiB of the host" in said and "optimizer.host=auto" not in said
    assert "(--set host_memory=88)" in said
    enough = H200.model_copy(update={"host_memory": 89.0})
    assert candidates(stage("auto"), APRIEL, 1, enough, WORK).fitting()


def test_no_more_of_the_host_is_planned_than_the_stage_allows() -> None:
    """``optimizer.host_memory`` is of a machine, whose GPUs share it."""

    def limited(most: int) -> Candidates:
        config = stage(optimizer={"peak": 1e-5, "host": "auto", "host_memory": most})
        return candidates(config, APRIEL, 1, H200, WORK)

    said = str(nothing_fits(limited(60 * GIB), 1, H200))
    assert "of 60.0 GiB of the host" in said and "--set host_memory" not in said
    enough = re.search(r"optimizer\.host_memory=(\d+)GB", said)
    assert enough is not None and limited(int(enough[1]) * 10**9).fitting()
    assert H200.host_available(4, 80 * GIB) == H200.host_available(2, 40 * GIB) == 20 * GIB
    assert H200.host_available(80, 80 * GIB) == 10 * GIB
    assert H200.host_available(2, None) == H200.host_available(2, 900 * GIB) == 104 * GIB


def test_a_shorter_sequence_helps_where_a_layer_at_work_takes_most() -> None:
    nearest = candidates(stage(), APRIEL, 1, H200, WORK).missing()[0]
    advice = "What helps: a shorter sequence_length"
    assert advice not in str(nothing_fits(Candidates([nearest]), 1, H200))
    wide = replace(nearest, memory=replace(nearest.memory, working=2 * nearest.memory.total))
    assert advice in str(nothing_fits(Candidates([wide]), 1, H200))


def test_the_dry_run_shows_both_places() -> None:
    output = io.StringIO()
    config = stage("auto", train={"decoder": 1})
    print_plan(config, 1, architecture="apriel-15b", console=Console(file=output, width=140))
    text = output.getvalue()
    assert "on the host" in text and "optimizer.host=auto: for a GPU of 139 GiB, 6 of them left free" in text
    output = io.StringIO()
    print_plan(stage(train={"decoder": 1}), 1, architecture="apriel-15b", console=Console(file=output, width=140))
    assert "on the host" not in output.getvalue()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": {"peak": 1e-5, "host": "most"}}, "is not a fraction.*or auto"),
        ({"optimizer": {"peak": 1e-5, "host": 1.5}}, "not between 0% and 100%"),
        ({"optimizer": {"peak": 1e-5, "host": True}}, "is not a fraction"),
        ({"optimizer": {"peak": 1e-5, "host": "40%"}, "checkpoint": {"background": True}}, "needs optimizer.host=0"),
        ({"optimizer": {"peak": 1e-5, "host": "auto"}, "checkpoint": {"background": True}}, "needs optimizer.host=0"),
        ({"precision": {"fp8_weights": "remade"}}, "has no meaning with fp8=none"),
        ({"recompute": {"inputs": "host"}}, "inputs=host has no meaning with mode=none.*set mode=full, or inputs=gpu"),
        ({"recompute": {"mode": "selective", "inputs": "host", "layers": 2}}, "layers=2 has no.*inputs=host has no"),
        ({"recompute": {"mode": "full", "inputs": "disk"}}, "gpu.*host"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){words}"):
        small_stage(8192, 64, **changes)


def test_shares_are_written_as_people_write_them() -> None:
    assert [stage(host).optimizer.host for host in ("auto", "60%", 0.6, 1, "0")] == ["auto", 0.6, 0.6, 1.0, 0.0]
