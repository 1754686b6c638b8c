"""The trainer on every parallel layout against one process: losses over several steps, outputs, gradients, norms.

Each layout of the table runs every case of ``CASES``, which vary what trains and what the batches hold, from the same
weights on the same global batches; and a second objective.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import pytest
import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.tensor_parallel import ColumnParallelLinear, vocab_parallel_cross_entropy
from training_run import ARCHITECTURE
from transformers import LlavaForConditionalGeneration  # noqa: F401  (imported once, before the ranks are forked)

from megatron_apriel.batch import IGNORED_LABEL, Batch
from megatron_apriel.model.head import token_logits
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.checkpoints import hf_model
from megatron_apriel.testing.layer_outputs import LayerOutputs, Outputs, gather_outputs
from megatron_apriel.testing.layouts import CASES, LAYOUTS, LayoutRun, Setup
from megatron_apriel.testing.ranks import run_ranks
from megatron_apriel.testing.weights import from_transformers, gather_moments
from megatron_apriel.train import optimizer
from megatron_apriel.train.objectives.next_token import NextToken
from megatron_apriel.train.objectives.objective import Counted, Objective

SEQUENCE_LENGTH, STEPS = 48, 2


@dataclass
class Outcome:
    """Losses and figures of the steps and of an evaluation after them, gradient norms; outputs, gradients of step 1."""

    losses: list[float]
    figures: list[dict[str, float]]
    norms: list[float]
    outputs: Outputs
    gradients: dict[str, torch.Tensor]


class WeightedTokens:
    """A second objective, which shows that a step takes any: cross entropy weighted by each token's position.

    Unlike the next token's, its gradient differs from token to token, so it goes by way of all logits. It counts
    weights, not tokens.
    """

    figures = ("accuracy", "weight")

    def __call__(self, head: ColumnParallelLinear, hidden_S1H: torch.Tensor, batch: Batch) -> Counted:
        logits_S1V, _ = head(hidden_S1H)
        losses_S1 = vocab_parallel_cross_entropy(logits_S1V.float(), batch.labels_S.clamp(min=0)[:, None])
        weights_S = (1 + batch.positions_S % 5) * (batch.labels_S != IGNORED_LABEL)
        right_S = token_logits(head, hidden_S1H, batch).argmax(-1) == batch.labels_S
        figures_F = torch.stack([(right_S * weights_S).sum(), (weights_S * weights_S).sum()])
        return Counted((losses_S1[:, 0] * weights_S).sum(), int(weights_S.sum()), figures_F.detach())


OBJECTIVES: dict[str, Objective] = {"next token": NextToken(), "weighted tokens": WeightedTokens()}
RUNS = {("next token", name) for name in CASES} | {("weighted tokens", "all, mixed")}
"""The second objective runs where everything trains and only some sequences have images."""


def run_case(objective: str, case: str, setup: Setup, weights: dict[str, torch.Tensor]) -> Outcome:
    run = LayoutRun(
        ARCHITECTURE,
        CASES[case],
        setup,
        weights,
        SEQUENCE_LENGTH,
        text=8,
        objective=OBJECTIVES[objective],
        precision={"compute": "fp32"},
    )
    trainer = run.trainer
    listening = LayerOutputs(trainer.chunks)
    results = [run.step(0)]
    outputs = gather_outputs(listening.close(), SEQUENCE_LENGTH, setup.layout.sequence)
    gradients = gather_moments(trainer.chunks, trainer.optimizer)
    results += [*(run.step(number) for number in range(1, STEPS)), run.evaluate(STEPS)]
    assert all(result.applied for result in results)
    losses, figures = [result.loss for result in results], [result.figures for result in results]
    return Outcome(losses, figures, [result.gradient_norm for result in results[:-1]], outputs, gradients)


def run_all(
    rank: int, size: int, setup: Setup, weights: dict[str, torch.Tensor]
) -> dict[tuple[str, str], Outcome] | None:
    if setup.overlap:  # of several buckets, which a model of this size would not have
        optimizer.DistributedDataParallelConfig = functools.partial(DistributedDataParallelConfig, bucket_size=4000)
    with groups.initialized(setup.layout):
        outcomes = {run: run_case(*run, setup, weights) for run in sorted(RUNS)}
    return outcomes if rank == 0 else None


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return from_transformers(hf_model(ARCHITECTURE, seed=1).state_dict(), ARCHITECTURE)


@pytest.fixture(scope="module")
def expected(weights: dict[str, torch.Tensor]) -> dict[tuple[str, str], Outcome]:
    return run_ranks(1, run_all, Setup(Layout()), weights)[0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_equals_one_process(
    name: str, weights: dict[str, torch.Tensor], expected: dict[tuple[str, str], Outcome]
) -> None:
    setup = LAYOUTS[name]
    outcomes = run_ranks(setup.layout.world_size, run_all, setup, weights)[0]
    for case, reference in expected.items():
        outcome = outcomes[case]
        assert outcome.losses == pytest.approx(reference.losses, rel=1e-5), case
        for found, expect in zip(outcome.figures, reference.figures, strict=True):
            assert found == pytest.approx(expect, rel=1e-6), case
        assert outcome.norms == pytest.approx(reference.norms, rel=1e-5, abs=1e-6), case
        assert len(reference.outputs) == ARCHITECTURE.decoder.num_layers * len(CASES[case[1]].images)
        for found, expect in ((outcome.outputs, reference.outputs), (outcome.gradients, reference.gradients)):
            assert found.keys() == expect.keys(), case
            for key, tensor in expect.items():
                largest, difference = tensor.abs().max(), (found[key] - tensor).abs().max()
                assert difference <= 1e-5 * largest, (case, key, difference, largest)
