"""Inputs of recomputed layers that wait on the host: every number as without, on all kinds of layout, and none lost."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from training_run import ARCHITECTURE
from transformers import LlavaForConditionalGeneration  # noqa: F401  (imported once, before the ranks are forked)

from megatron_apriel.parallel import groups
from megatron_apriel.planning.memory import INPUTS_ON_THE_WAY
from megatron_apriel.testing.checkpoints import hf_model
from megatron_apriel.testing.layouts import ALONE, CASES, LAYOUTS, LayoutRun, Setup
from megatron_apriel.testing.optimizer_state import optimizer_state
from megatron_apriel.testing.ranks import run_ranks
from megatron_apriel.testing.weights import from_transformers
from megatron_apriel.train.layer_inputs import LayerInputs

SEQUENCE_LENGTH, STEPS = 48, 2
SETUPS = {"one": ALONE, **LAYOUTS}
KINDS = ("one", "DP2 overlap", "TP2", "TP2 SP", "CP2", "PP2 uneven", "PP4", "PP2 VP2 overlap", "CP2 PP2 recompute")


class Trained(NamedTuple):
    losses: list[float]
    state: dict[str, torch.Tensor]
    most: int
    """Inputs that waited on the host at once."""
    brought: int
    """Inputs that came back from there."""


def run_of(setup: Setup, weights: dict[str, torch.Tensor], case: str, recompute: dict[str, Any]) -> LayoutRun:
    return LayoutRun(
        ARCHITECTURE, CASES[case], setup, weights, SEQUENCE_LENGTH, text=8,
        recompute={"mode": "full", **recompute}, precision={"compute": "bf16"},
    )  # fmt: skip


def trained(run: LayoutRun, monkeypatch: pytest.MonkeyPatch) -> Trained:
    most = brought = 0
    keep, bring = LayerInputs._kept, LayerInputs._bring

    def counted(self: LayerInputs, tensor: torch.Tensor) -> Any:
        nonlocal most
        kept = keep(self, tensor)
        most = max(most, self.waiting)
        return kept

    def coming(self: LayerInputs, kept: Any) -> None:
        nonlocal brought
        brought += 1
        bring(self, kept)

    with monkeypatch.context() as changed:
        changed.setattr(LayerInputs, "_kept", counted)
        changed.setattr(LayerInputs, "_bring", coming)
        results = [run.step(number) for number in range(STEPS)]
    assert run.trainer.inputs is None or run.trainer.inputs.waiting == 0
    results.append(run.evaluate(STEPS))
    return Trained([result.loss for result in results], optimizer_state(run.trainer), most, brought)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return from_transformers(hf_model(ARCHITECTURE, seed=1).state_dict(), ARCHITECTURE)


@pytest.mark.parametrize("name", KINDS)
def test_every_number_is_as_without(
    name: str, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = SETUPS[name]

    def on_rank(rank: int, size: int) -> None:
        with groups.initialized(setup.layout):
            for case in ("all, mixed", "projector, mixed", "decoder, mixed"):
                for layers in (None, 1):
                    here, away = (
                        trained(run_of(setup, weights, case, {"layers": layers, "inputs": inputs}), monkeypatch)
                        for inputs in ("gpu", "host")
                    )
                    assert here.losses == away.losses, (case, layers)
                    assert here.state.keys() == away.state.keys()
                    assert all(torch.equal(tensor, away.state[key]) for key, tensor in here.state.items()), case
                    assert (here.most, here.brought) == (0, 0)

    run_ranks(setup.layout.world_size, on_rank)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("layers", [None, 1])
def test_as_many_wait_as_were_planned(
    name: str, layers: int | None, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more, and in some rank's fullest moment no fewer; all but the last of each pass leave the device."""
    setup = SETUPS[name]

    def on_rank(rank: int, size: int) -> tuple[int, int, int]:
        with groups.initialized(setup.layout):
            run = run_of(setup, weights, "decoder, mixed", {"layers": layers, "inputs": "host"})
            inputs = run.trainer.inputs
            assert inputs is not None
            found = trained(run, monkeypatch)
            chunks = [chunk.decoder for chunk in run.trainer.chunks]
            recomputed = [min(len(block.layers), layers or len(block.layers)) for block in chunks]
            entered = STEPS * run.trainer.micro_batches * sum(recomputed)
            passes = STEPS * run.trainer.micro_batches * len(chunks)
            assert entered - INPUTS_ON_THE_WAY * passes <= found.brought <= entered
            assert setup.layout.pipeline > 1 or found.brought == max(entered - INPUTS_ON_THE_WAY * passes, 0)
            return found.most, len(inputs._memory.pieces), found.brought

    for most, planned, _ in run_ranks(setup.layout.world_size, on_rank):
        assert most == planned


def test_what_comes_back_is_what_is_used(weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Other numbers on the host would be other gradients."""
    bring = LayerInputs._bring

    def spoil(self: LayerInputs, kept: Any) -> None:
        kept.place.zero_()
        bring(self, kept)

    def on_rank(rank: int, size: int) -> None:
        with groups.initialized(ALONE.layout):
            expected = trained(run_of(ALONE, weights, "decoder, mixed", {"inputs": "host"}), monkeypatch)
            monkeypatch.setattr(LayerInputs, "_bring", spoil)
            found = trained(run_of(ALONE, weights, "decoder, mixed", {"inputs": "host"}), monkeypatch)
        assert found.losses[0] == expected.losses[0] and found.losses[1] != expected.losses[1]

    run_ranks(1, on_rank)


def test_a_pass_that_is_given_up_gives_its_places_back(weights: dict[str, torch.Tensor]) -> None:
    """Whose graph is dropped without a backward pass, or which fails on its way."""

    def on_rank(rank: int, size: int) -> None:
        with groups.initialized(ALONE.layout):
            run = run_of(ALONE, weights, "decoder, mixed", {"inputs": "host"})
            inputs, (chunk,) = run.trainer.inputs, run.trainer.chunks
            assert inputs is not None
            batch = next(run._batches(0))
            losses = chunk(batch)
            assert inputs.waiting == len(chunk.decoder.layers)
            del losses
            assert inputs.waiting == 0
            failing = chunk.decoder.layers[2].register_forward_pre_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                chunk(batch)
            failing.remove()
            assert inputs.waiting == 0
            run.step(0)

    run_ranks(1, on_rank)
