"""A run's checkpoints and its export over several ranks: bit-identical on the same layout, right on any other."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from safetensors.torch import load_file
from training_run import ALL, ARCHITECTURE, KEEP_ALL, Run
from transformers import LlavaForConditionalGeneration  # noqa: F401  (imported once, before the ranks are forked)

from megatron_apriel.checkpoint import store as store_module
from megatron_apriel.checkpoint.background_save import FileWriter, ShardWriting
from megatron_apriel.checkpoint.export import export_hf
from megatron_apriel.checkpoint.loading import load_weights
from megatron_apriel.checkpoint.store import CheckpointStore
from megatron_apriel.checkpoint.training_state import divide_state
from megatron_apriel.config.training_sections import TrainedParts
from megatron_apriel.errors import CheckpointError
from megatron_apriel.model.builder import build_model
from megatron_apriel.model.options import ModelOptions
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.layouts import layout_of
from megatron_apriel.testing.ranks import RankFailure, run_ranks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(tmp_path_factory.mktemp("hf"), ARCHITECTURE, dtype="bfloat16")


def _draws() -> list[float]:
    with get_cuda_rng_tracker().fork():
        tracked = float(torch.rand(()))
    return [random.gauss(0, 1), float(numpy.random.standard_normal()), float(torch.rand(())), tracked]


def _save_and_go_on(rank: int, world_size: int, layout: Layout, source: Path, where: Path, dtype: torch.dtype) -> Any:
    with groups.initialized(layout, seed=5):
        run, store = Run(layout, dtype=dtype), CheckpointStore(where, KEEP_ALL, 4)
        run.start_from(source)
        losses = run.steps(0, 2)
        _draws()
        saved = store.save(2, run.wrapped, run.optimizer, {"sequences": 8, "losses": losses}, source)
        assert store.latest() == saved.path
        return run.steps(2, 4), _draws(), run.weights()


def _planned(rank: int, world_size: int, layout: Layout, where: Path) -> tuple[int, int, int]:
    """Numbers of optimizer state that this rank writes, that it holds, and the largest single piece of them."""
    with groups.initialized(layout, seed=5):
        run = Run(layout)
        run.steps(0, 1)
        if rank == 0:
            where.mkdir()
        torch.distributed.barrier()
        writing, _ = divide_state(where, run.chunks, run.optimizer)
        items = [item for item in writing._plan.items if item.index.fqn.startswith("optimizer.")]
        sizes = [item.tensor_data.chunk.sizes.numel() for item in items if item.tensor_data is not None]
        writing.finish()
        parts = getattr(run.optimizer, "chained_optimizers", [run.optimizer])
        held = sum(main.numel() for part in parts for group in part.optimizer.param_groups for main in group["params"])
        return sum(sizes), 3 * held, max(sizes)


@pytest.mark.parametrize("name", ["DP2", "CP2", "TP2 SP DP2 overlap"])
def test_a_rank_writes_its_own_part_of_the_optimizer(tmp_path, name):
    """Main parameters and two moments; what tensor-parallel ranks all have is written by the first alone."""
    layout = layout_of(name)
    planned = run_ranks(layout.world_size, _planned, layout, tmp_path / "state")
    total = ARCHITECTURE.parameters * 3
    assert sum(written for written, _, _ in planned) == total
    for rank, (written, held, largest) in enumerate(planned):
        assert (written == held) if layout.coordinates(rank).tensor == 0 else (0 < written < held)
        assert held <= total / layout.optimizer_shards * 1.1
        assert largest <= held / 3


def _resume(rank: int, world_size: int, layout: Layout, where: Path, dtype: torch.dtype) -> Any:
    with groups.initialized(layout, seed=77):
        run, store = Run(layout, dtype=dtype), CheckpointStore(where, KEEP_ALL, 4)
        extra = store.load(store.latest(), run.chunks, run.optimizer)
        assert extra["sequences"] == 8 and len(extra["losses"]) == 2
        return run.steps(2, 4), _draws(), run.weights()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("one", "bfloat16"), ("TP2 SP DP2 overlap", "float32"), ("TP2 SP CP2", "float32"), ("PP2 VP2", "bfloat16")],
)
def test_resume_on_the_same_layout_is_bit_identical(checkpoint, tmp_path, name, dtype):
    layout, dtype = layout_of(name), getattr(torch, dtype)
    expected = run_ranks(layout.world_size, _save_and_go_on, layout, checkpoint, tmp_path, dtype)
    resumed = run_ranks(layout.world_size, _resume, layout, tmp_path, dtype)
    for (losses, draws, weights), (losses_again, draws_again, weights_again) in zip(expected, resumed, strict=True):
        assert losses == losses_again
        assert draws == draws_again
        assert all(torch.equal(one, other) for one, other in zip(weights, weights_again, strict=True))
    if layout.world_size > 1:
        assert expected[0][1] != expected[-1][1] or layout.pipeline == 1


def test_resume_on_other_layouts(checkpoint, tmp_path):
    """What two data-parallel ranks saved continues on every other layout with the same losses."""
    losses, _, _ = run_ranks(2, _save_and_go_on, layout_of("DP2"), checkpoint, tmp_path, torch.float32)[0]
    for name in ("one", "TP2 SP", "PP2 VP2", "TP2 SP PP2 recompute", "CP2"):
        layout = layout_of(name)
        for losses_again, _, _ in run_ranks(layout.world_size, _resume, layout, tmp_path, torch.float32):
            assert losses_again == pytest.approx(losses, rel=3e-6), name


def _export(rank: int, world_size: int, layout: Layout, source: Path, destination: Path) -> int:
    with groups.initialized(layout):
        chunks = build_model(ARCHITECTURE, ModelOptions(dtype=torch.bfloat16), layout)
        report = load_weights(chunks, source, ARCHITECTURE)
        export_hf(chunks, ARCHITECTURE, sidecars=source, destination=destination, max_shard_size=50_000)
        return report.bytes_read


EXPORTED = ("one", "DP2", "TP2 SP", "PP2 VP2", "TP2 SP PP2 recompute", "TP2 SP DP2 overlap", "CP2", "TP2 SP CP2")


@pytest.mark.parametrize("name", EXPORTED)
def test_hf_to_megatron_to_hf_is_bit_exact(checkpoint, tmp_path, name):
    layout, destination = layout_of(name), tmp_path / "exported"
    read = run_ranks(layout.world_size, _export, layout, checkpoint, destination)
    source = load_file(checkpoint / "model.safetensors")
    exported: dict[str, torch.Tensor] = {}
    for file in sorted(destination.glob("model-*.safetensors")):
        exported |= load_file(file)
    assert exported.keys() == source.keys()
    for tensor_name, tensor in source.items():
        assert exported[tensor_name].dtype == tensor.dtype and torch.equal(exported[tensor_name], tensor), tensor_name
    assert json.loads((destination / "config.json").read_text()) == json.loads((checkpoint / "config.json").read_text())
    if layout.model_ranks > 1:
        assert max(read) < (checkpoint / "model.safetensors").stat().st_size


def _save_weights(rank: int, world_size: int, layout: Layout, source: Path, where: Path, step: int) -> None:
    with groups.initialized(layout):
        run, store = Run(layout), CheckpointStore(where, KEEP_ALL, 4)
        run.start_from(source)
        store.save(step, run.wrapped, run.optimizer, {"sequences": 0}, source)


def test_average_of_steps_that_were_saved_on_different_layouts(tmp_path):
    """A run that changed its layout twice: the command line gives the mean of what each step was saved from."""
    sources = [write_hf_checkpoint(tmp_path / f"hf{seed}", ARCHITECTURE, seed=seed) for seed in (1, 2, 3)]
    (tmp_path / "run").mkdir()
    for step, (name, source) in enumerate(
        zip(("TP2 SP", "PP2 VP2", "TP2 SP PP2 recompute"), sources, strict=True), start=1
    ):
        layout = layout_of(name)
        run_ranks(layout.world_size, _save_weights, layout, source, tmp_path / "run" / "checkpoints", step)
    command = [sys.executable, str(ROOT / "tools" / "average_checkpoints.py"), str(tmp_path / "mean")]
    command += ["--run", str(tmp_path / "run"), "--equispaced", "3", "--verify"]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "Transformer Engine" not in said.stderr and "CUDA" not in said.stderr, said.stderr
    inputs = [load_file(source / "model.safetensors") for source in sources]
    mean = load_file(tmp_path / "mean" / "model.safetensors")
    assert mean.keys() == inputs[0].keys()
    for name, tensor in mean.items():
        assert torch.equal(tensor, (sum(given[name].double() for given in inputs) / 3).float()), name


def _export_fails(rank: int, world_size: int, source: Path, destination: Path) -> str:
    with groups.initialized(Layout(2, pipeline=2)):
        chunks = build_model(ARCHITECTURE, ModelOptions(), Layout(2, pipeline=2))
        if rank == 0:
            from megatron_apriel.checkpoint import export

            def full(*arguments: Any, **options: Any) -> None:
                raise OSError(28, "No space left on device")

            export.write_hf_sidecars = full
        with pytest.raises(Exception) as caught:
            export_hf(chunks, ARCHITECTURE, sidecars=source, destination=destination)
        return str(caught.value)


def test_failed_export_ends_on_all_ranks(checkpoint, tmp_path):
    messages = run_ranks(2, _export_fails, checkpoint, tmp_path / "exported")
    assert all("No space left" in message for message in messages)
    assert list(tmp_path.iterdir()) == []


def _frozen(rank: int, world_size: int, source: Path, where: Path, train: TrainedParts, resume: bool) -> Any:
    layout = Layout(2, pipeline=2)
    with groups.initialized(layout):
        run, store = Run(layout, train), CheckpointStore(where, KEEP_ALL, 4)
        if resume:
            store.load(store.latest(), run.chunks, run.optimizer)
        else:
            run.start_from(source)
            run.steps(0, 1)
            store.save(1, run.chunks, run.optimizer, {}, source)
        return run.steps(1, 3), run.weights()


def test_frozen_parts_have_no_state_and_ranks_without_any_resume(checkpoint, tmp_path):
    """Only the projector trains: the second pipeline rank has no optimizer at all."""
    projector = TrainedParts(projector=1)
    expected = run_ranks(2, _frozen, checkpoint, tmp_path, projector, False)
    stored = store_module.read_run_file(tmp_path / "step_00000001")
    assert len(stored.optimizer_groups) >= 1
    resumed = run_ranks(2, _frozen, checkpoint, tmp_path, projector, True)
    for (losses, weights), (losses_again, weights_again) in zip(expected, resumed, strict=True):
        assert losses == losses_again
        assert all(torch.equal(one, other) for one, other in zip(weights, weights_again, strict=True))
    with pytest.raises(RankFailure, match=r"decoder\S+ was frozen in it and is trained now"):
        run_ranks(2, _frozen, checkpoint, tmp_path, ALL, True)


def _killed_in_mid_save(rank: int, world_size: int, source: Path, where: Path) -> None:
    layout = Layout(2)
    with groups.initialized(layout):
        run, store = Run(layout), CheckpointStore(where, KEEP_ALL, 4)
        run.start_from(source)
        store.save(1, run.chunks, run.optimizer, {}, source)
        run.steps(0, 1)
        finish = ShardWriting.finish

        def killed(writing: ShardWriting) -> None:
            finish(writing)
            if rank == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        ShardWriting.finish = killed
        store.save(2, run.chunks, run.optimizer, {}, source)


def _save_again(rank: int, world_size: int, source: Path, where: Path) -> list[str]:
    layout = Layout(2)
    with groups.initialized(layout):
        run, store = Run(layout), CheckpointStore(where, KEEP_ALL, 4)
        store.load(store.latest(), run.chunks, run.optimizer)
        run.steps(0, 1)
        store.save(2, run.chunks, run.optimizer, {}, source)
        return sorted(path.name for path in where.iterdir())


def test_killed_in_mid_save(checkpoint, tmp_path):
    with pytest.raises(RankFailure):
        run_ranks(2, _killed_in_mid_save, checkpoint, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000002.partial"]
    assert CheckpointStore(tmp_path, KEEP_ALL, 4).latest() == tmp_path / "step_00000001"
    names = run_ranks(2, _save_again, checkpoint, tmp_path)[0]
    assert names == ["step_00000001", "step_00000002"]


def _disk_full(rank: int, world_size: int, source: Path, where: Path, at: str) -> str:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    layout = Layout(2, tensor=2)
    with groups.initialized(layout):
        run, store = Run(layout), CheckpointStore(where, KEEP_ALL, 4)
        if at == "shards" and rank == 1:
            FileWriter.write_data = full
        if at == "sidecars" and rank == 0:
            store_module.write_sidecars = full
        with pytest.raises(CheckpointError) as caught:
            store.save(1, run.chunks, run.optimizer, {}, source)
        return str(caught.value)


@pytest.mark.parametrize("at", ["shards", "sidecars"])
def test_a_save_that_fails_fails_on_all_ranks(checkpoint, tmp_path, at):
    messages = run_ranks(2, _disk_full, checkpoint, tmp_path, at)
    assert all("No space left" in message and "unchanged" in message for message in messages)
    assert list(tmp_path.iterdir()) == []
