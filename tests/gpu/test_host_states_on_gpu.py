"""FP8 training with states and layers' inputs in host memory: every number as without, saved and resumed in the other
place, and memory as predicted. The cases worth most come first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from slices import TINY, Slice, attention_by_cudnn, equal, running

from megatron_apriel.checkpoint.store import CheckpointStore
from megatron_apriel.config.output_sections import KeepPolicy
from megatron_apriel.formats.json_files import write_json
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.marks import needs_transformer_engine

pytestmark = [pytest.mark.gpu, needs_transformer_engine]


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """Process groups for all cases, whose communicators are then made once."""
    with groups.initialized(Layout()):
        yield


@pytest.mark.parametrize(
    ("precision", "recomputed"), [("tensorwise", 2), ("delayed", None), ("delayed", 2), ("tensorwise", None)]
)
def test_where_states_and_inputs_lie_changes_no_bit_of_training(precision: str, recomputed: int | None) -> None:
    here = Slice(precision, 4, recomputed=recomputed)
    with running(here) as run:
        expected, state = run.figures(20), run.state()
    with running(here.on_host(0.6)) as run:
        found = run.figures(20)
        same = equal(run.state(), state)
    if found != expected or not same:
        with running(here) as run:
            assert run.figures(20) == expected, "the same run twice differs by itself"
            assert equal(run.state(), state), "the same run twice ends with other states by itself"
    assert found == expected
    assert same
    assert expected[-1][0] < expected[0][0]


def test_8_bit_weights_made_anew_change_no_bit() -> None:
    """Also of layers that are not recomputed. With delayed scaling a copy's scale follows from how often it is made."""
    remade = Slice("tensorwise", 4, recomputed=2, width="half")
    with running(remade) as run:
        found, state = run.figures(5), run.state()
    with running(replace(remade, fp8_weights="kept")) as run:
        assert run.figures(5) == found
        assert equal(run.state(), state)


def test_attention_is_the_one_that_adds_up_in_one_order() -> None:
    """Otherwise runs may differ by themselves, or be equal because there is hardly any attention."""
    for width in ("full", "half"):
        with running(Slice("tensorwise", 1, width=width)) as run:
            run.steps(1)
            assert TINY or attention_by_cudnn()


@pytest.mark.parametrize(("before", "after"), [(1.0, 0.0), (0.0, 1.0)], ids=["host to GPU", "GPU to host"])
def test_saved_in_one_place_and_resumed_in_the_other(before: float, after: float, tmp_path: Path) -> None:
    """To the bit, and on from there; saving takes no memory of the GPU that training has not."""
    what = Slice("tensorwise", 4, width="half")
    of_share = {0.0: what, 1.0: what.on_host(1.0)}
    store = CheckpointStore(tmp_path / "checkpoints", KeepPolicy(policy="all"), 9)
    with running(of_share[before]) as run:
        (tmp_path / "sidecars").mkdir()
        write_json(tmp_path / "sidecars" / "config.json", run.architecture.to_hf_config("bfloat16"))
        run.steps(1)
        of_steps = run.peak_of(lambda: run.steps(2))
        parts = run.trainer.chunks, run.trainer.optimizer
        assert run.peak_of(lambda: store.save(3, *parts, {}, tmp_path / "sidecars")) <= of_steps
        saved, expected = run.state(), run.figures(2)
        ended = run.state()
    latest = store.latest()
    assert latest is not None
    with running(of_share[after]) as run:
        store.load(latest, run.trainer.chunks, run.trainer.optimizer)
        assert equal(run.state(), saved)
        assert run.figures(2) == expected
        assert equal(run.state(), ended) and not equal(ended, saved)


@pytest.mark.parametrize("precision", ["delayed", "bf16"])
def test_a_run_that_has_ended_holds_nothing(precision: str) -> None:
    """But a library's room for products, 32 MiB each; the weights alone are 472 MiB."""
    what = Slice(precision, 4, width="half", recomputed=2).on_host(0.5)
    with running(what) as run:
        run.steps(2)
    with running(what) as run:
        assert run.held_before < 2**27


@pytest.mark.parametrize(
    "what",
    [
        Slice("tensorwise", 8, case="8192", whole_vocabulary=True, optimizer={"host": 0.4}),
        Slice("delayed", 8, case="32768-sft", optimizer={"host": 0.3}, inputs="host"),
        Slice("tensorwise", 6, case="32768-cpt1", recomputed=4, optimizer={"host": 0.3}, inputs="host"),
        Slice("tensorwise", 8, case="8192", recomputed=4, optimizer={"host": 0.3}),
    ],
    ids=["states", "inputs", "inputs and images", "not recomputed"],
)
def test_the_gpu_holds_what_was_predicted(what: Slice) -> None:
    with running(what) as run:
        run.steps(1)
        peak = run.peak_of(lambda: run.steps(2))
        assert TINY or peak == pytest.approx(run.predicted.total, rel=0.03), f"held before: {run.held_before}"
