"""What a plan says of the copy that a save in the background takes on the host."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.dry_run import print_plan
from megatron_apriel.planning.hardware import KINDS
from megatron_apriel.planning.layouts import Candidates, candidates
from megatron_apriel.planning.memory import rank_memory
from megatron_apriel.planning.plan_words import nothing_fits
from megatron_apriel.planning.workload import Workload
from megatron_apriel.testing.stages import small_stage

APRIEL = Architecture.from_preset("apriel-15b")
ALL = {"tower": 1, "projector": 1, "decoder": 1}


def stage(background: bool = True, **changes: Any) -> StageConfig:
    return small_stage(8192, 8, **{"checkpoint": {"background": background}, "train": ALL} | changes)


def copied(layout: Layout = Layout(), **changes: Any) -> float:  # noqa: B008 - frozen
    memory = rank_memory(stage(**changes), APRIEL, layout, 0)
    assert memory.on_host == memory.host_copy
    return memory.host_copy


def test_weights_masters_and_moments_are_copied() -> None:
    everything, decoder = APRIEL.parameters, APRIEL.decoder.parameters
    vocabulary = 2 * APRIEL.decoder.embedding_parameters
    bf16 = {"precision": {"compute": "bf16"}}
    assert copied(**bf16) == 14 * everything
    assert copied(**bf16, train={"decoder": 1}) == 12 * decoder + 2 * everything
    assert copied(**bf16, optimizer={"peak": 1e-5, "moments": "bfloat16"}) == 10 * everything
    assert copied(**bf16, optimizer={"peak": 1e-5, "moments": "int8"}) == 14 * everything - 4 * vocabulary
    assert copied(precision={"compute": "fp32"}) == 16 * everything
    assert copied(Layout(4), **bf16) == 14 * everything / 4
    assert copied(background=False) == 0


@pytest.mark.parametrize("background", [True, False])
def test_a_dry_run_shows_it(background: bool) -> None:
    output = io.StringIO()
    print_plan(stage(background), 1, architecture="apriel-15b", console=Console(file=output, width=160))
    assert ("on the host" in output.getvalue()) == background


def test_a_plan_names_it_where_the_host_has_no_room() -> None:
    host = KINDS["h200"].model_copy(update={"host_memory": 20.0})

    def planned(background: bool) -> Candidates:
        config = stage(background, recompute={"mode": "full"}, train={"projector": 1})
        return candidates(config, APRIEL, 1, host, Workload(8192, 0))

    assert not planned(True).fitting() and planned(False).fitting()
    assert "What helps: checkpoint.background=false, " in str(nothing_fits(planned(True), 1, host))
    alone = str(nothing_fits(candidates(stage(), APRIEL, 1, KINDS["h200"], Workload(8192, 0)), 1, KINDS["h200"]))
    assert "optimizer.host=auto and checkpoint.background=false, " in alone
