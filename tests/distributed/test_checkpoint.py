"""A run's checkpoints and its export over several ranks: bit-identical on the same layout, right on any other."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration  # noqa: F401  (imported once, before the ranks are forked)

from megatron_apriel.architecture import Architecture, DecoderArchitecture, ProjectorArchitecture, TowerArchitecture
from megatron_apriel.batch import Batch
from megatron_apriel.checkpoint import training
from megatron_apriel.checkpoint.export import export_hf
from megatron_apriel.checkpoint.hf import load_weights
from megatron_apriel.checkpoint.training import CheckpointStore
from megatron_apriel.config.schema import KeepPolicy, TrainedParts
from megatron_apriel.errors import CheckpointError
from megatron_apriel.model.builder import build_model
from megatron_apriel.model.freeze import apply_freezing
from megatron_apriel.model.options import ModelOptions
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.batches import make_batch, random_document
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.ranks import RankFailure, run_ranks
from megatron_apriel.train.optimizer import use_own_adamw

ARCHITECTURE = Architecture(
    decoder=DecoderArchitecture(32, 4, 4, 2, 16, 48, 64, rope_theta=1e6),
    tower=TowerArchitecture(32, 2, 2, 16, 48, "silu", patch_size=4, image_size=32),
    projector=ProjectorArchitecture(32, 32),
)
ROOT = Path(__file__).parents[2]
ALL = TrainedParts(tower=1, projector=1, decoder=1)
KEEP_ALL = KeepPolicy(policy="all")
SEQUENCE_LENGTH, SEQUENCES = 48, 4

LAYOUTS = {
    "one": Layout(1),
    "DP2": Layout(2),
    "TP2": Layout(2, tensor=2, sequence=True),
    "PP2 VP2": Layout(2, pipeline=2, virtual=2),
    "TP2 PP2": Layout(4, tensor=2, pipeline=2, sequence=True),
    "TP2 DP2": Layout(4, tensor=2, sequence=True),
    "CP2": Layout(2, context=2),
    "TP2 CP2": Layout(4, tensor=2, sequence=True, context=2),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(tmp_path_factory.mktemp("hf"), ARCHITECTURE, dtype="bfloat16")


class Run:
    """The part of a training run that a checkpoint holds."""

    def __init__(self, layout: Layout, train: TrainedParts = ALL, dtype: torch.dtype = torch.float32) -> None:
        self.layout = layout
        self.chunks = build_model(ARCHITECTURE, ModelOptions(dtype=dtype), layout)
        apply_freezing(self.chunks, train)
        config = self.chunks[0].config
        settings = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
        self.wrapped = [DistributedDataParallel(config, settings, chunk) for chunk in self.chunks]
        bf16 = dtype == torch.bfloat16
        use_own_adamw()
        self.optimizer: MegatronOptimizer = get_megatron_optimizer(
            OptimizerConfig(
                lr=1e-3, weight_decay=0.1, clip_grad=1.0, use_distributed_optimizer=True, bf16=bf16, params_dtype=dtype
            ),
            self.wrapped,
        )
        config.finalize_model_grads_func = finalize_model_grads
        config.grad_scale_func = self.optimizer.scale_loss

    def start_from(self, source: Path) -> None:
        load_weights(self.chunks, source, ARCHITECTURE)
        self.optimizer.reload_model_params()

    def steps(self, first: int, stop: int) -> list[float]:
        """Train steps ``first`` to ``stop``; the sum of the losses of each, the same on all ranks."""
        return [self._step(step) for step in range(first, stop)]

    def _step(self, step: int) -> float:
        for chunk in self.wrapped:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        outputs = get_forward_backward_func()(
            forward_step_func=_forward_step,
            data_iterator=[self._batches(step) for _ in self.wrapped],
            model=self.wrapped,
            num_microbatches=SEQUENCES // self.layout.data,
            seq_length=SEQUENCE_LENGTH,
            micro_batch_size=1,
        )
        self.optimizer.step()
        total = torch.stack(outputs).sum() if outputs else torch.zeros(())
        dist.all_reduce(total)
        return float(total) / self.layout.tensor

    def _batches(self, step: int) -> Iterator[Batch]:
        shares, context = groups.image_shares_group(), groups.context_group()
        for number in range(parallel_state.get_data_parallel_rank(), SEQUENCES, self.layout.data):
            generator = torch.Generator().manual_seed(1000 * step + number)
            grids = [(2, 3), (1, 4)] if number % 2 else []
            yield make_batch(
                ARCHITECTURE,
                [random_document(ARCHITECTURE, 12, grids, generator)],
                sequence_length=SEQUENCE_LENGTH,
                shares=shares.size(),
                share=shares.rank(),
                context=context.rank(),
                contexts=context.size(),
            )

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for chunk in self.chunks for parameter in chunk.parameters()]


def _forward_step(iterator: Iterator[Batch], chunk: torch.nn.Module) -> tuple[torch.Tensor, Any]:
    batch = next(iterator)

    def loss(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return losses.sum(), torch.tensor(batch.num_loss_tokens, dtype=torch.int), losses.detach().sum()

    return chunk(batch), loss


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
        path = store.save(2, run.wrapped, run.optimizer, {"sequences": 8, "losses": losses}, source)
        assert store.latest() == path
        return run.steps(2, 4), _draws(), run.weights()


def _resume(rank: int, world_size: int, layout: Layout, where: Path, dtype: torch.dtype) -> Any:
    with groups.initialized(layout, seed=77):
        run, store = Run(layout, dtype=dtype), CheckpointStore(where, KEEP_ALL, 4)
        extra = store.load(store.latest(), run.chunks, run.optimizer)
        assert extra["sequences"] == 8 and len(extra["losses"]) == 2
        return run.steps(2, 4), _draws(), run.weights()


@pytest.mark.parametrize(
    ("name", "dtype"), [("one", "bfloat16"), ("TP2 DP2", "float32"), ("TP2 CP2", "float32"), ("PP2 VP2", "bfloat16")]
)
def test_resume_on_the_same_layout_is_bit_identical(checkpoint, tmp_path, name, dtype):
    layout, dtype = LAYOUTS[name], getattr(torch, dtype)
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
    losses, _, _ = run_ranks(2, _save_and_go_on, LAYOUTS["DP2"], checkpoint, tmp_path, torch.float32)[0]
    for name in ("one", "TP2", "PP2 VP2", "TP2 PP2", "CP2"):
        layout = LAYOUTS[name]
        for losses_again, _, _ in run_ranks(layout.world_size, _resume, layout, tmp_path, torch.float32):
            assert losses_again == pytest.approx(losses, rel=3e-6), name


def _export(rank: int, world_size: int, layout: Layout, source: Path, destination: Path) -> int:
    with groups.initialized(layout):
        chunks = build_model(ARCHITECTURE, ModelOptions(dtype=torch.bfloat16), layout)
        report = load_weights(chunks, source, ARCHITECTURE)
        export_hf(chunks, ARCHITECTURE, sidecars=source, destination=destination, max_shard_size=50_000)
        return report.bytes_read


@pytest.mark.parametrize("name", LAYOUTS)
def test_hf_to_megatron_to_hf_is_bit_exact(checkpoint, tmp_path, name):
    layout, destination = LAYOUTS[name], tmp_path / "exported"
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
    for step, (name, source) in enumerate(zip(("TP2", "PP2 VP2", "TP2 PP2"), sources, strict=True), start=1):
        layout = LAYOUTS[name]
        run_ranks(layout.world_size, _save_weights, layout, source, tmp_path / "run" / "checkpoints", step)
    command = [sys.executable, str(ROOT / "tools" / "average_checkpoints.py"), str(tmp_path / "mean")]
    command += ["--run", str(tmp_path / "run"), "--equispaced", "3", "--verify"]
    subprocess.run(command, check=True, capture_output=True)
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
    messages = run_ranks(2, _export_fails, checkpoint, tmp_path / "exported", timeout=60)
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
    stored = training.read_run_file(tmp_path / "step_00000001")
    assert len(stored["optimizer_groups"]) >= 1
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
        save_state = training.save_state

        def killed(*arguments: Any) -> None:
            save_state(*arguments)
            if rank == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        training.save_state = killed
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
        run_ranks(2, _killed_in_mid_save, checkpoint, tmp_path, timeout=30)
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
            torch.distributed.checkpoint.FileSystemWriter.write_data = full
        if at == "sidecars" and rank == 0:
            training.write_sidecars = full
        with pytest.raises(CheckpointError) as caught:
            store.save(1, run.chunks, run.optimizer, {}, source)
        return str(caught.value)


@pytest.mark.parametrize("at", ["shards", "sidecars"])
def test_a_save_that_fails_fails_on_all_ranks(checkpoint, tmp_path, at):
    messages = run_ranks(2, _disk_full, checkpoint, tmp_path, at, timeout=60)
    assert all("No space left" in message and "unchanged" in message for message in messages)
    assert list(tmp_path.iterdir()) == []
