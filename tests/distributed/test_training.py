"""Whole runs of the loop: every layout the same, resumable to the bit, and well-behaved when things go wrong."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from stage_runs import (
    ARCHITECTURE,
    before_step,
    losses,
    poison,
    records,
    run,
    stage_file,
    start,
    start_held,
    wait_for_line,
)
from transformers import LlavaForConditionalGeneration

from megatron_apriel.batch import IGNORED_LABEL, Batch
from megatron_apriel.checkpoint.convert import convert, plan_conversion
from megatron_apriel.config.load import load_stage
from megatron_apriel.data.loading.loader import TrainingLoader
from megatron_apriel.errors import AprielError, CheckpointError, ConfigError, DataError, ExitCode
from megatron_apriel.formats.kinds import Kind
from megatron_apriel.formats.run_directory import RunDirectory
from megatron_apriel.planning.disk_room import least_checkpoint_bytes
from megatron_apriel.testing.corpora import write_corpus
from megatron_apriel.testing.layouts import LAYOUTS
from megatron_apriel.testing.ranks import RankFailure, run_ranks
from megatron_apriel.train import run as run_module
from megatron_apriel.train.metrics import JsonLines
from megatron_apriel.train.run import run_stage


def test_first_loss_is_that_of_transformers_on_the_same_documents(root: Path, reference: list[float]) -> None:
    model = LlavaForConditionalGeneration.from_pretrained(root / "model", attn_implementation="eager").eval()
    config = load_stage(stage_file(root, "reference"))
    total, count = 0.0, 0
    with TrainingLoader(config, ARCHITECTURE) as loader, torch.no_grad():
        for _, batch in zip(range(config.sequences_per_step), loader, strict=False):
            for start, stop in itertools.pairwise(batch.cu_seqlens.tolist()):
                labels = batch.labels_S[start:stop]
                if (labels == IGNORED_LABEL).all():
                    continue
                logits = model(input_ids=batch.tokens_S[None, start:stop], **pixels_of(batch, start, stop)).logits[0]
                total += F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="sum").item()
                count += int((labels != IGNORED_LABEL).sum())
    assert reference[0] == pytest.approx(total / count, rel=1e-5)


def pixels_of(batch: Batch, start: int, stop: int) -> dict[str, torch.Tensor]:
    """The images of one document as transformers takes them: padded to one size, with their true sizes."""
    images, patch = [], ARCHITECTURE.tower.patch_size
    bounds = batch.images.cu_seqlens.tolist()
    for first, last in itertools.pairwise(bounds):
        if start <= int(batch.images.slots_K[first]) < stop:
            rows, columns = (int(index[last - 1]) + 1 for index in (batch.images.rows_P, batch.images.columns_P))
            patches = batch.images.patches_PC[first:last].view(rows, columns, 3, patch, patch)
            images.append(patches.permute(2, 0, 3, 1, 4).reshape(3, rows * patch, columns * patch))
    if not images:
        return {}
    sizes = torch.tensor([image.shape[1:] for image in images])
    padded = torch.zeros(len(images), 3, *sizes.max(0).values.tolist())
    for row, image in zip(padded, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return {"pixel_values": padded, "image_sizes": sizes}


RUN_ON = ("DP2 overlap", "TP2 SP", "PP2", "PP2 VP2 overlap", "CP2", "CP2 DP2 overlap", "TP2 SP PP2 recompute")


@pytest.mark.parametrize("layout", RUN_ON)
def test_every_layout_gives_the_losses_of_one_process(root: Path, reference: list[float], layout: str) -> None:
    setup, name = LAYOUTS[layout], layout.replace(" ", "_")
    ranks = setup.layout.world_size
    assert run(root, name, *setup.overrides, ranks=ranks) == [ExitCode.OK] * ranks
    assert losses(root, name) == pytest.approx(reference, rel=2e-5)
    ours, one = (records(root, run_name, "validation") for run_name in (name, "reference"))
    assert [record["loss"] for record in ours] == pytest.approx([record["loss"] for record in one], rel=2e-5)
    # Every token and every operation is counted once, however many ranks share it.
    ours, one = (records(root, run_name, "step") for run_name in (name, "reference"))
    for mine, alone in zip(ours, one, strict=True):
        assert mine["loss_tokens"] == alone["loss_tokens"]
        assert mine["tokens_per_second"] * mine["seconds"] == pytest.approx(512)
        work, reference_work = (record["tflops_per_gpu"] * record["seconds"] for record in (mine, alone))
        assert work * ranks == pytest.approx(reference_work)
        assert mine["image_share"] == pytest.approx(alone["image_share"])
    assert any(record["image_share"] > 0 for record in one)


@pytest.mark.parametrize("layout", ["DP2 overlap", "CP2 DP2 overlap"])
def test_sequences_dealt_evenly_give_the_losses_of_one_process(root: Path, reference: list[float], layout: str) -> None:
    setup, name = LAYOUTS[layout], f"evenly_{layout.replace(' ', '_')}"
    ranks, evenly = setup.layout.world_size, "parallel.dealing=evenly"
    assert run(root, name, *setup.overrides, evenly, ranks=ranks) == [ExitCode.OK] * ranks
    assert losses(root, name) == pytest.approx(reference, rel=2e-5)


@pytest.mark.parametrize(("first", "second"), [("data", "tensor"), ("context", "pipeline"), ("tensor", "context")])
def test_resumes_on_another_layout(root: Path, reference: list[float], first: str, second: str) -> None:
    def parallel(kind: str) -> list[str]:
        return [] if kind == "data" else [f"parallel.{kind}=2"]

    name = f"moved_{first}"
    assert run(root, name, *parallel(first), ranks=2) == [0, 0]
    (root / name / "checkpoints" / "step_00000006").rename(root / name / "aside")
    assert run(root, name, *parallel(second), ranks=2) == [0, 0]
    steps = [record["step"] for record in records(root, name, "step")]
    assert steps == [1, 2, 3, 4, 5, 6, 5, 6]
    assert losses(root, name) == pytest.approx(reference, rel=2e-5)


def test_killed_runs_continue_to_the_bit(root: Path, reference: list[float]) -> None:
    process = start_held(root, "killed", 5)
    wait_for_line(process, "step 5/6")
    process.kill()
    process.wait()
    again = start(root, "killed")
    output, _ = again.communicate(timeout=180)
    assert again.returncode == ExitCode.OK, output
    assert "resumed from" in output
    assert losses(root, "killed") == reference
    final, expected = (load_file(root / name / "final" / "model.safetensors") for name in ("killed", "reference"))
    assert all(torch.equal(final[name], expected[name]) for name in expected)


def test_without_an_export_a_finished_run_names_its_checkpoint(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert run(root, "kept", "tokens=1024", "checkpoint.export=false") == [ExitCode.OK]
    kept = root / "kept" / "checkpoints" / "step_00000002"
    assert f"the result is in {kept}" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("name", "share", "settings"),
    [
        ("float32", 0.9, ()),
        ("frozen", 0.85, ("train.decoder=frozen",)),
        ("bf16", 0.9, ("precision.compute=bf16",)),
        ("16_bits", 0.9, ("precision.compute=bf16", "optimizer.moments=bfloat16")),
        ("8_bits", 0.65, ("precision.compute=bf16", "optimizer.moments=int8", "optimizer.master=24bit")),
    ],
)
def test_what_a_checkpoint_takes_at_least_is_known(
    root: Path, name: str, share: float, settings: tuple[str, ...]
) -> None:
    """A run is refused where the disk has less room than that: no more than a checkpoint takes, and not much less."""
    name, settings = f"least_{name}", (*settings, "tokens=512", "checkpoint.export=false", "validation=null")
    assert run(root, name, *settings) == [ExitCode.OK]
    taken = sum(file.stat().st_size for file in (root / name).glob("checkpoints/*/*.distcp"))
    least = least_checkpoint_bytes(load_stage(stage_file(root, name), settings), ARCHITECTURE)
    assert share * taken < least <= taken


def test_a_finished_run_says_so_and_does_nothing(root: Path, reference: list[float]) -> None:
    before = sorted((path, path.stat().st_mtime) for path in (root / "reference" / "final").iterdir())
    assert run(root, "reference") == [ExitCode.OK]
    assert sorted((path, path.stat().st_mtime) for path in (root / "reference" / "final").iterdir()) == before
    assert losses(root, "reference") == reference


def test_the_result_of_an_earlier_training_is_not_taken_for_this_ones(
    root: Path, reference: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(root / "reference" / "final", root / "again" / "final")

    def killed(stage: Any, final: Path) -> None:
        os._exit(0)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_export", killed)
        with pytest.raises(RankFailure):
            run(root, "again", "optimizer.peak=5.0e-2")
    for _ in range(2):
        assert run(root, "again", "optimizer.peak=5.0e-2") == [ExitCode.OK]
    ours, others = (load_file(root / name / "final" / "model.safetensors") for name in ("again", "reference"))
    assert not all(torch.equal(ours[name], others[name]) for name in ours)
    assert not RunDirectory(root / "again").outdated.exists()


def test_places_that_cannot_be_gone_on_from_or_written_to_are_named_before_training(root: Path) -> None:
    (root / "occupied" / "final").mkdir(parents=True)
    (root / "occupied" / "final" / "mine.txt").write_text("mine")
    with pytest.raises(RankFailure, match=r"occupied/final exists and has no config\.json"):
        run(root, "occupied")
    (root / "file").touch()
    with pytest.raises(RankFailure, match=r"cannot be made: .*file is a file"):
        run(root, "no_directory", f"output={root}/file", "checkpoint.export=false")
    assert not (root / "occupied" / "metrics.jsonl").exists()
    step = root / "converted" / "checkpoints" / "step_00000001"
    convert(plan_conversion(root / "model", Kind.MEGATRON), step)
    with pytest.raises(RankFailure, match=r"step_00000001 holds weights and nothing of a run"):
        run(root, "converted")


def test_frozen_parts_leave_as_they_came_and_trained_ones_do_not(root: Path) -> None:
    assert run(root, "frozen", "train={projector: 1.0}", "tokens=1024", ranks=2) == [0, 0]
    before, after = (load_file(root / name / "model.safetensors") for name in ("model", "frozen/final"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("multi_modal_projector")}


def test_going_on_with_another_meaning_is_refused(root: Path, reference: list[float]) -> None:
    with pytest.raises(RankFailure, match="seed: 1234 -> 7"):
        run(root, "reference", "seed=7")


def test_a_run_goes_on_where_its_corpora_moved_but_not_with_others(root: Path, reference: list[float]) -> None:
    assert run(root, "carried") == [0]
    for path in (root / "carried" / "checkpoints").glob("step_00000006"):
        path.rename(root / "carried" / "aside")
    shutil.copytree(root / "text", root / "elsewhere")
    assert run(root, "carried", f"mixture.0.corpus={root}/elsewhere") == [0]
    assert losses(root, "carried") == reference
    (root / "carried" / "checkpoints" / "step_00000006").rename(root / "carried" / "again")
    write_corpus(root / "others", [50] * 40)
    others = f"mixture.0.corpus={root}/others"
    with pytest.raises(
        RankFailure, match=r"mixture\[others\]\.weight: 0\.0 -> 0\.5\n  mixture\[text\]\.weight: 0\.5 -> 0"
    ):
        run(root, "carried", others)
    for change in (False, True):
        with pytest.raises(RankFailure, match="others holds other documents than when this run was begun"):
            run(root, "carried", others, "mixture.0.name=text", change=change)


@pytest.mark.parametrize("missing", ["mixture.0.corpus", "init_from", "output"])
def test_what_one_rank_lacks_ends_all_of_them(root: Path, missing: str) -> None:
    name = f"lacking_{missing.replace('.', '_')}"
    # A file stands where the output directory would be made; only rank 0 writes there.
    (root / "file").touch()
    place = root / "file" / "output" if missing == "output" else root / "nowhere"
    # Written once: a rank that reads while another writes would fail for another reason, and alone.
    file = stage_file(root, name)

    def one_rank_lacks(rank: int, size: int) -> str:
        config = load_stage(file, [f"{missing}={place}"] if rank == (0 if missing == "output" else 1) else [])
        with pytest.raises((AprielError, OSError)) as caught:
            run_stage(config)
        return str(caught.value)

    messages = run_ranks(2, one_rank_lacks)
    assert all(str(place) in message for message in messages)
    assert sum("1 of 2 ranks cannot continue, so all end" in message for message in messages) == 1


def test_two_runs_into_one_directory_are_refused(root: Path) -> None:
    (root / "twice").mkdir()
    with (root / "twice" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RankFailure, match=r"another run is writing to .*twice"):
            run(root, "twice", "tokens=1024")
    assert run(root, "twice", "tokens=1024") == [0]


def test_what_nobody_foresaw_says_where_it_happened_on_every_rank(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that runs out of memory, and the other, which only notices that the first is gone."""
    file = stage_file(root, "unforeseen")

    def out_of_memory(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 17 GiB")

    def main(rank: int, size: int) -> int:
        if rank == 1:
            monkeypatch.setattr(run_module, "train", out_of_memory)
        return int(run_stage(load_stage(file)))

    with pytest.raises(RankFailure) as caught:
        run_ranks(2, main)
    survivor, failed = sorted(str(caught.value).split(" of 2 raised:")[1:], key=lambda told: "17 GiB" in told)
    assert "trial: rank 0 of 2, after step 0 of 6." in survivor
    assert "in the output of the one that ended first" in survivor
    assert "trial: rank 1 of 2, after step 0 of 6." in failed
    assert "recompute.mode" in failed
    for told in (survivor, failed):
        assert f"newest whole checkpoint in {root / 'unforeseen' / 'checkpoints'}" in told


def test_a_step_that_is_not_finite_is_skipped_and_its_samples_named(
    root: Path, reference: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {9})
    assert run(root, "poisoned", ranks=2) == [0, 0]
    skipped = records(root, "poisoned", "skipped")
    assert [(record["step"], record["in_a_row"], record["skipped"]) for record in skipped] == [(3, 1, 1)]
    (line,) = (root / "poisoned" / "skipped_steps.jsonl").read_text(encoding="utf-8").splitlines()
    (named,) = json.loads(line)["sequences"]
    assert named["sequence"] == 9
    assert named["samples"]
    values = {record["step"]: record["loss"] for record in records(root, "poisoned", "step")}
    assert [values[1], values[2]] == pytest.approx(reference[:2], rel=2e-5)
    assert set(values) == {1, 2, 4, 5, 6}
    assert all(np.isfinite(value) for value in values.values())


def test_too_many_bad_steps_in_a_row_end_the_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, set(range(4, 100)))
    with pytest.raises(RankFailure) as caught:
        run(root, "hopeless", "faults.max_skipped_in_a_row=2")
    message = str(caught.value)
    assert DataError.__name__ in message
    assert "2 steps in a row, the last of them step 3" in message
    assert "skipped_steps.jsonl" in message
    assert "none of them changed the weights, and the newest checkpoint is step_00000002." in message


def test_a_missing_corpus_is_an_error_before_training(root: Path) -> None:
    with pytest.raises(RankFailure, match="nowhere"):
        run(root, "missing", f"mixture.0.corpus={root}/nowhere")
    assert not (root / "missing" / "checkpoints").exists()


def test_a_record_of_several_steps_has_their_means_and_its_own_numbers(
    root: Path, reference: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    every = "logging={every: 4, tensorboard: true}"
    assert run(root, "sparse", every, ranks=2) == [ExitCode.OK] * 2
    each, sparse = records(root, "reference", "step"), records(root, "sparse", "step")
    assert [record["step"] for record in sparse] == [4, 6]
    for record, steps in zip(sparse, (each[:4], each[4:]), strict=True):
        tokens = sum(one["loss_tokens"] for one in steps)
        mean = sum(one["loss"] * one["loss_tokens"] for one in steps) / tokens
        norm = sum(one["gradient_norm"] for one in steps) / len(steps)
        since = record["since_last"]
        assert (since["count"], since["loss_tokens"], since["skipped"]) == (len(steps), tokens, 0)
        assert (since["loss"], since["gradient_norm"]) == pytest.approx((mean, norm), rel=2e-5)
        assert record["loss"] == pytest.approx(steps[-1]["loss"], rel=2e-5)
        assert set(since["loss_by_source"]) == {"text", "images"}
    for record in each:  # every step logged: the same numbers to the bit
        own = {name: record[name] for name in record["since_last"] if name in record and name != "skipped"}
        assert own | {"loss_by_source": record["since_last"]["loss_by_source"]} == {
            name: value for name, value in record["since_last"].items() if name in own
        }
    # Nothing of what came before a stop is lost from the curves.
    before_step(monkeypatch, 2, lambda rank: os.kill(os.getpid(), signal.SIGTERM))
    assert run(root, "sparse_stop", every) == [ExitCode.REQUEUE]
    (record,) = records(root, "sparse_stop", "step")
    assert (record["step"], record["since_last"]["count"]) == (3, 3)


def test_offline_wandb_and_tensorboard_get_the_figures(root: Path) -> None:
    pytest.importorskip("wandb")
    assert run(root, "logged", "logging={tensorboard: true, wandb: offline}", "tokens=1024") == [ExitCode.OK]
    assert list((root / "logged" / "wandb").glob("offline-run-*/*.wandb"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(root / "logged" / "tensorboard"))
    events.Reload()
    logged = [event.value for event in events.Scalars("train/loss")]
    assert logged == pytest.approx([record["loss"] for record in records(root, "logged", "step")], rel=1e-6)


def test_figures_that_cannot_be_written_do_not_end_the_run(
    root: Path, reference: list[float], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sound = JsonLines.write

    def full(sink: JsonLines, record: Any) -> None:
        if record["step"] == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        sound(sink, record)

    monkeypatch.setattr(JsonLines, "write", full)
    assert run(root, "full_disk", ranks=2) == [0, 0]
    assert [record["step"] for record in records(root, "full_disk", "step")] == [1, 3, 4, 5, 6]
    assert losses(root, "full_disk")[1:] == pytest.approx(reference[2:], rel=2e-5)
    assert "warning: JsonLines cannot write figures: [Errno 28] No space left on device" in capfd.readouterr().err


def test_a_checkpoint_that_cannot_be_written_ends_all_ranks_and_says_how_much_room_there_is(root: Path) -> None:
    config = load_stage(stage_file(root, "small_disk"))

    def small_disk(rank: int, size: int) -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        with pytest.raises(CheckpointError) as caught:
            run_stage(config)
        return str(caught.value)

    for message in run_ranks(2, small_disk):
        assert "step_00000002 could not be written" in message
        assert "bytes free. Make room if that is too little" in message
    assert list((root / "small_disk" / "checkpoints").iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="the default is another there")
def test_on_a_cpu_the_numbers_are_float32_unless_asked_for_and_it_is_said(
    root: Path, reference: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    """And a run that a checkpoint of a named type began resumes by the default without a word of a change."""
    for name, setting, line in (
        ("by_default", "precision={}", "precision: fp32, the default on a CPU"),
        ("named", "precision={compute: bf16}", "precision: bf16; on a CPU that can take many times as long"),
    ):
        assert run(root, name, setting, "tokens=1024", ranks=2) == [ExitCode.OK] * 2
        assert capfd.readouterr().out.count(line) == 1
        compute = load_stage(root / name / "config.resolved.yaml").precision.compute
        weights = load_file(root / name / "final" / "model.safetensors")
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[compute]
        assert {tensor.dtype for tensor in weights.values()} == {dtype}
        assert compute == ("fp32" if name == "by_default" else "bf16")
    shutil.rmtree(root / "by_default" / "final")
    assert run(root, "by_default", "precision={compute: fp32}", "tokens=1024") == [ExitCode.OK]
    assert records(root, "by_default", "changed") == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may run it")
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("precision.compute=bf16", "precision.fp8=delayed"), "Transformer Engine"),
        (("precision.compute=bf16", "attention=flash"), "Transformer Engine"),
        (("precision.compute=auto", "optimizer.gradients=24bit"), "needs weights in bf16, not in fp32"),
    ],
)
def test_what_this_machine_cannot_run_is_said_before_data_and_weights_are_looked_for(
    root: Path, settings: tuple[str, ...], words: str
) -> None:
    nowhere = f"init_from={root}/nowhere", f"mixture.0.corpus={root}/nowhere"
    with pytest.raises(RankFailure, match=words):
        run(root, "impossible", *settings, *nowhere)
    assert not (root / "impossible").exists()


def test_configuration_errors_come_before_torch(root: Path) -> None:
    file = stage_file(root, "wrong")
    command = [sys.executable, "-X", "importtime", "-m", "megatron_apriel.train", str(file), "optimiser.peak=1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == ExitCode.FAILED
    assert ConfigError.__name__ in result.stderr
    assert "optimizer" in result.stderr
    assert " torch\n" not in result.stderr
