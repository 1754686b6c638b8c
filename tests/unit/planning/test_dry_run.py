"""The dry run: its figures, and that it answers anywhere."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from megatron.core.pipeline_parallel.schedules import get_schedule_table
from rich.console import Console

from megatron_apriel.config.load import to_yaml
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.loading.loader import TrainingLoader
from megatron_apriel.errors import ConfigError, DataError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.dry_run import print_plan
from megatron_apriel.planning.memory import (
    layer_elements,
    micro_batches_in_flight,
    rank_memory,
    sequences_of_images_in_flight,
)
from megatron_apriel.planning.mixture_table import mixture_table
from megatron_apriel.tables import lines_of
from megatron_apriel.testing.corpora import write_corpus
from megatron_apriel.testing.stages import small_stage
from megatron_apriel.testing.tokenizers import write_processor

APRIEL = Architecture.from_preset("apriel-15b")


def stage(**changes: Any) -> StageConfig:
    corpora = [{"corpus": "no/such/a", "weight": 0.75}, {"corpus": "no/such/b", "weight": 0.25}]
    return small_stage(**{"train": {"projector": 1, "decoder": 1}, "mixture": corpora} | changes)


def plan(config: StageConfig, world_size: int, **options: Any) -> str:
    output = io.StringIO()
    print_plan(config, world_size, console=Console(file=output, width=120), **options)
    return output.getvalue()


def row(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"│ {name} "))
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


def test_report() -> None:
    config = stage(parallel={"tensor": 4, "sequence": True, "pipeline": 2, "virtual": 2})
    text = plan(config, 64, architecture="apriel-15b")
    assert "Dry run of stage trial on 64 ranks: nothing is started." in text
    assert "of stage trial on 1 rank: nothing" in plan(stage(), 1, architecture="apriel-15b")
    assert "sequence_length: 8192" in text
    assert row(text, "tensor") == ["4", "8 heads, 2 groups, sequence parallel"]
    assert row(text, "data")[0] == "8"
    assert row(text, "  stage 0") == ["32", "tower, projector, embedding, layers 0-11, 24-35"]
    assert row(text, "  stage 1") == ["32", "layers 12-23, 36-47, head"]
    assert row(text, "tower") == ["403,489,792", "0", "403,489,792", "frozen"]
    assert row(text, "decoder") == ["14,428,902,400", "14,428,902,400", "0", "1"]
    assert row(text, "tokens per step") == ["524,288"]
    assert row(text, "micro-batches per step and rank") == ["8"]
    assert row(text, "steps") == ["1,908"]
    assert row(text, "text, one document a sequence") == ["92.2 GFLOP per token"]
    assert row(text, "a")[:3] == ["75.0%", "750,256,128", "not known"]
    assert "note: init_from no/such/model does not exist yet." in text
    assert "note: mixture a: no/such/a does not exist yet, so its documents are not counted." in text
    assert "not counted, since corpora are missing." in text


def test_names_with_brackets_are_printed_as_they_are() -> None:
    corpora = [{"corpus": "data/[old]/a", "name": "[/a]", "weight": 1}]
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        print_plan(stage(mixture=corpora), 8, architecture="apriel-15b")
    assert row(output.getvalue(), "[/a]")[-1] == "data/[old]/a"


def test_a_computed_split_is_printed_with_its_loads() -> None:
    """The head counts as 2.19 layers at 8192 tokens: 10 of them with it are 12.19, of a mean of 12.55."""
    config = stage(train={"decoder": 1}, parallel={"pipeline": 4, "layers_per_stage": "balanced"})
    text = plan(config, 8, architecture="apriel-15b")
    assert row(text, "  split") == ["", "layers_per_stage=[12,13,13,10]"]
    assert row(text, "  loads") == ["", "96%, 104%, 104%, 97% of the mean: 4% slower than an even load"]
    assert "loads: the head counts as 2.19 layers" in text
    assert "layers_per_stage: 12 13 13 10" in " ".join(text.split()).replace("- ", "")  # resolved configuration


def test_command_without_torch(tmp_path: Path) -> None:
    """As on a login node: the whole command line answers though torch cannot be imported."""
    path = tmp_path / "stage.yaml"
    path.write_text(to_yaml(stage()))
    words = [str(path), "--dry-run", "--world-size", "32", "--architecture", "apriel-15b", "tokens=2B"]
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'megatron', 'transformers')));"
        f" from megatron_apriel.train.command import main; sys.exit(main({words!r}))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "tokens: 2000000000" in finished.stdout
    assert max(map(len, finished.stdout.splitlines())) < 200


def test_shapes_come_from_the_checkpoint(tmp_path: Path) -> None:
    tiny = Architecture.from_preset("tiny")
    (tmp_path / "config.json").write_text(json.dumps(tiny.to_hf_config()))
    config = stage(init_from=tmp_path, sequence_length=64, batch_tokens=640)
    text = plan(config, 5)
    assert f"The model's shapes come from {tmp_path}." in text
    assert row(text, "decoder")[0] == f"{tiny.decoder.parameters:,}"
    assert "init_from" not in text.split("note:", 1)[1].replace(f"init_from {tmp_path} has no tokenizer and", "")


def test_a_missing_model_needs_a_preset() -> None:
    with pytest.raises(ConfigError) as caught:
        plan(stage(), 8)
    assert "init_from=no/such/model does not exist, so the model's shapes are not known." in str(caught.value)
    assert "--architecture apriel-15b" in str(caught.value)


def test_missing_corpora_are_errors_where_asked_for() -> None:
    with pytest.raises(DataError, match="2 of the 2 corpora of stage trial cannot be used"):
        validation = {"corpora": [{"corpus": "no/such/c"}]}
        plan(stage(validation=validation), 8, architecture="apriel-15b", check_data=True)


def test_missing_pictures_of_samples_are_errors_where_asked_for(tmp_path: Path) -> None:
    config = stage(samples={"prompts": ["What?", {"text": "What is it?", "image": str(tmp_path / "none.png")}]})
    assert f"samples.prompts.1.image {tmp_path}/none.png does not exist" in plan(config, 8, architecture="apriel-15b")
    with pytest.raises(ConfigError, match=r"samples\.prompts\.1\.image .* does not exist"):
        plan(config, 8, architecture="apriel-15b", check_data=True)


def test_what_is_evaluated_is_said_and_checked(tmp_path: Path) -> None:
    def evaluated(*names: str, **settings: Any) -> str:
        section = {"benchmarks": names, "data": str(tmp_path), "pictures": "no/such/pictures", **settings}
        return plan(stage(evaluate=section), 8, architecture="apriel-15b")

    text = evaluated("ifbench", "mmlu_pro")
    assert row(text, "evaluations") == ["at the start, every 500 steps and at the end: ifbench, mmlu_pro"]
    assert "note: checkpoints are evaluated by python tools/evaluate.py --follow runs/trial, beside the run." in text
    assert "note: evaluate.pictures no/such/pictures does not exist yet." in text
    assert f"note: evaluate.data {tmp_path}" not in text
    assert row(evaluated("ifbench", every=1000, start=False), "evaluations")[0].startswith("every 1,000 steps")
    with pytest.raises(ConfigError, match="there is no benchmark 'ifbenhc'; did you mean ifbench"):
        evaluated("ifbenhc")


def test_corpora_of_no_use_are_errors(tmp_path: Path) -> None:
    write_corpus(tmp_path / "text", [8], images=None)
    mixture = [{"corpus": tmp_path / "text", "loss": "responses"}]
    decoder = {"train": {"decoder": 1}}
    assert "note: mixture" not in plan(stage(mixture=mixture, **decoder), 8, architecture="apriel-15b")
    write_corpus(tmp_path / "text", [8], images=None, responses=False)
    for others in ([], [{"corpus": "no/such/corpus", "weight": 0.5}]):
        mixture = [{"corpus": tmp_path / "text", "loss": "responses", "weight": 1 - 0.5 * len(others)}, *others]
        with pytest.raises(DataError, match="none of its 8 tokens is part of a response, and loss is 'responses'"):
            plan(stage(mixture=mixture, **decoder), 8, architecture="apriel-15b")
    held_out = {"corpora": [{"corpus": tmp_path / "text", "loss": "responses"}]}
    with pytest.raises(DataError, match="none of its 8 tokens is part of a response"):
        plan(stage(validation=held_out, **decoder), 8, architecture="apriel-15b")


def test_corpora_of_another_tokenizer_are_errors(tmp_path: Path) -> None:
    tiny = Architecture.from_preset("tiny")
    model = replace(tiny, decoder=replace(tiny.decoder, vocab_size=4096))
    write_processor(tmp_path, model)
    (tmp_path / "config.json").write_text(json.dumps(model.to_hf_config()))
    write_corpus(tmp_path / "text", [8], images=None)
    changes = {"mixture": [{"corpus": tmp_path / "text"}], "train": {"decoder": 1}}
    changes |= {"init_from": tmp_path, "sequence_length": 4096}
    with pytest.raises(DataError, match=r"text was prepared with tokenizer 0{12}, the model in .* has"):
        plan(stage(**changes), 8)


def test_the_verdict_is_that_of_the_run(tmp_path: Path) -> None:
    """Word for word what the run's loader says; and the numbers that it will use."""
    write_corpus(tmp_path / "text", [5000, 4000, 4000], images=None)
    write_corpus(tmp_path / "more", [8000] * 3, images=None)
    text, more = {"corpus": tmp_path / "text", "weight": 0.5}, {"corpus": tmp_path / "more", "weight": 0.5}
    refused = [
        {"mixture": [text | {"max_epochs": 2}, more], "train": {"decoder": 1}},
        {"mixture": [text | {"loss": "responses"}, more], "sequence_length": 2048, "batch_tokens": 2048},
        {"mixture": [text, more]},
    ]
    for changes in refused:
        config = stage(**{"tokens": 64 * 8192} | changes)
        with pytest.raises(DataError) as planned:
            plan(config, 1, architecture="apriel-15b")
        with pytest.raises(DataError) as run:
            TrainingLoader(config, APRIEL)
        assert str(planned.value) == str(run.value)
    config = stage(mixture=[text, more], train={"decoder": 1}, tokens=64 * 8192)
    shown = plan(config, 8, architecture="apriel-15b")
    lengths, tokens, packs = {"text": [5000, 4000, 4000], "more": [8000] * 3}, Counter[str](), Counter[str]()
    with TrainingLoader(config, APRIEL) as loader:
        assert "\n".join(lines_of(mixture_table(loader.data), 120)) in "\n".join(map(str.rstrip, shown.splitlines()))
        for place in map(loader.describe, range(64)):
            packs[place["source"]] += 1
            tokens[place["source"]] += sum(lengths[place["source"]][document] for document in place["samples"])
    # 5000 + 4000 do not fit into 8192: the first corpus has two packs, of 8000 and of 5000.
    taken = [f"{tokens['text']:,}", f"{packs['text'] / 2:.2f}", "3", "2", f"{1 - 13000 / 16384:.2%}"]
    assert row(shown, "text")[1:6] == taken
    assert row(shown, "more")[1:3] == [f"{tokens['more']:,}", f"{packs['more'] / 3:.2f}"]
    padding = 1 - tokens.total() / (64 * 8192)
    assert f"In all 64 sequences of 8,192, {padding:.2%} of them padding." in " ".join(shown.split())


def test_epochs_are_counted_where_the_corpora_are(tmp_path: Path) -> None:
    """Seven packs, three times, in steps of four sequences: 21 of 24."""
    write_corpus(tmp_path / "text", [8000] * 7, images=None)
    settings = {"tokens": None, "epochs": 3, "batch_tokens": 4 * 8192, "train": {"decoder": 1}}
    config = stage(mixture=[{"corpus": tmp_path / "text"}], **settings)
    shown = plan(config, 4, architecture="apriel-15b")
    assert row(shown, "epochs") == ["3, of the source that its weight uses up first"]
    assert [row(shown, name) for name in ("steps", "tokens of the stage")] == [["6"], [f"{24 * 8192:,}"]]
    assert row(shown, "text")[2] == f"{24 / 7:.2f}"
    assert f"tokens: {21 * 8192}" in shown and "epochs: null" in shown
    kept = {"every": 1, "keep": "equispaced 7"}
    with pytest.raises(ConfigError, match="saves 6 times in 6 steps"):
        plan(stage(mixture=[{"corpus": tmp_path / "text"}], checkpoint=kept, **settings), 4, architecture="apriel-15b")
    away = plan(stage(checkpoint=kept, **settings), 4, architecture="apriel-15b")
    unknown = "not known: epochs are counted with the corpora, and some are missing"
    assert row(away, "steps, tokens of the stage") == [unknown]
    assert row(away, "a")[:3] == ["75.0%", "not known", "not known"]


def test_what_is_left_to_learn_is_counted(tmp_path: Path) -> None:
    """The second half of a document is its response; sequences have 8192 tokens, so nothing of the first's is left."""
    write_corpus(tmp_path / "chats", [16384, 10000, 30], images=None)

    def text(**changes: Any) -> str:
        source = {"corpus": tmp_path / "chats", "loss": "responses", "long_documents": "truncate"} | changes
        config = stage(mixture=[source], train={"decoder": 1})
        return " ".join(plan(config, 8, architecture="apriel-15b").split())

    with pytest.raises(DataError, match="1 of 3 documents has no token to learn, the first is document 0, in"):
        text()
    with pytest.raises(DataError, match="2 of 3 documents are longer than sequence_length=8192"):
        text(long_documents="error")
    dropped = text(without_targets="drop")
    assert "note: mixture chats: 1 of 3 documents has no token to learn (loss: responses), 1 of them because" in dropped
    assert "chats: 2 of 3 documents lost 10,000 tokens of responses (long_documents: truncate)" in dropped
    longer = (
        "note: mixture chats: 2 of 3 documents are longer than the sequence of 8,192 tokens (long_documents: split)"
    )
    assert f"{longer} note: precision" in text(long_documents="split")
    assert "to learn" not in text(loss="all") and "lost" not in text(loss="all")


def test_only_rank_0_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    assert plan(stage(), 8, architecture="apriel-15b") == ""


def test_memory_of_weights_gradients_and_optimizer() -> None:
    """Without parallelism these are plain products; with it, shards add up to the whole."""
    whole = rank_memory(stage(), APRIEL, Layout(), 0)
    assert APRIEL.projector is not None
    trained = APRIEL.decoder.parameters + APRIEL.projector.parameters
    assert whole.weights == 2 * APRIEL.parameters
    assert (whole.gradients, whole.optimizer) == (4 * trained, 10 * trained)
    assert whole.working == 2 * 2**29 + 2 * 8192 * 5120
    sharded = rank_memory(stage(), APRIEL, Layout(16), 0)
    assert sharded.optimizer == whole.optimizer / 16 and sharded.gradients == whole.gradients
    in_fp32 = rank_memory(stage(precision={"compute": "fp32"}), APRIEL, Layout(), 0)
    assert (in_fp32.weights, in_fp32.optimizer) == (4 * APRIEL.parameters, 8 * trained)
    assert in_fp32.working == 2 * whole.working
    stages = [rank_memory(stage(), APRIEL, Layout(4, pipeline=4), number) for number in range(4)]
    assert sum(memory.weights for memory in stages) == whole.weights
    assert [memory.working for memory in stages] == [2 * 8192 * 2 * 14336] * 3 + [whole.working]
    assert [memory.images > 0 for memory in stages] == [True, False, False, False]


def test_tensor_parallel_memory_keeps_norms_and_tower_whole() -> None:
    decoder, tensor = APRIEL.decoder, 8
    whole = (2 * decoder.num_layers + 1) * decoder.hidden_size
    assert APRIEL.tower is not None and APRIEL.projector is not None
    images = APRIEL.tower.parameters + APRIEL.projector.parameters
    memory = rank_memory(stage(), APRIEL, Layout(tensor, tensor=tensor), 0)
    assert memory.weights == 2 * ((decoder.parameters - whole) / tensor + whole + images)


def test_fp8_adds_two_copies_of_the_matrices() -> None:
    plain = rank_memory(stage(), APRIEL, Layout(), 0)
    fp8 = rank_memory(stage(precision={"fp8": "tensorwise"}), APRIEL, Layout(), 0)
    matrices = APRIEL.decoder.num_layers * (APRIEL.decoder.layer_parameters - 2 * APRIEL.decoder.hidden_size)
    assert fp8.weights - plain.weights == 2 * matrices
    kept = stage(precision={"fp8": "tensorwise", "bf16_layers_at_start": 3, "bf16_layers_at_end": 9})
    assert rank_memory(kept, APRIEL, Layout(), 0).weights - plain.weights == 2 * matrices * 36 / 48


def test_activations_of_a_layer() -> None:
    """By hand for h=5120, q=4096, k=1024, f=14336."""
    sizes = {mode: layer_elements(APRIEL.decoder, mode, 1, False, True) for mode in ("none", "selective", "full")}
    assert sizes == {"none": 4 * 5120 + 10240 + 3 * 14336, "selective": 4 * 5120 + 10240, "full": 5120}
    assert layer_elements(APRIEL.decoder, "none", 8, True, True) == sizes["none"] / 8
    assert layer_elements(APRIEL.decoder, "none", 8, False, True) == 4 * 5120 + (10240 + 3 * 14336) / 8
    # Of two blocks of eight, the first and the last, the keys before them: 1 + 8 eighths of four ranks' tokens.
    assert layer_elements(APRIEL.decoder, "selective", 1, False, True, context=4) == 4 * 5120 + 2 * (4096 + 4.5 * 1024)
    assert layer_elements(APRIEL.decoder, "full", 1, False, True, context=4) == 5120
    assert layer_elements(APRIEL.decoder, "none", 1, False, False) == 2 * 5120 + 10240 + 2 * 14336
    assert layer_elements(APRIEL.decoder, "selective", 1, False, False) == 3 * 5120 + 10240


def test_layers_in_8_bits_keep_the_inputs_of_their_matrices_in_one_byte() -> None:
    """By hand for 48 layers: norms' outputs and the product a byte less; attention's output one more where delayed."""

    def kept(layout: Layout | None = None, rank: int = 0, **settings: object) -> float:
        return rank_memory(stage(**settings), APRIEL, layout or Layout(), rank).activations

    def working(**settings: object) -> float:
        return rank_memory(stage(**settings), APRIEL, Layout(), 0).working

    eight = {"fp8": "tensorwise"}
    assert kept() - kept(precision=eight) == 8192 * 48 * (2 * 5120 + 14336)
    delayed = {"fp8": "delayed"}
    assert kept() - kept(precision=delayed) == 8192 * 48 * (2 * 5120 + 14336 - 4096)
    # The first of four pipeline ranks, with 12 layers and 4 micro-batches: 3 layers stay in bf16 there, none elsewhere.
    pipeline = Layout(4, pipeline=4)
    few = {**eight, "bf16_layers_at_start": 3}
    whole, some = kept(pipeline, precision=eight), kept(pipeline, precision=few)
    assert some - whole == 4 * 8192 * 3 * (2 * 5120 + 14336)
    assert kept(pipeline, 1, precision=few) == kept(pipeline, 1, precision=eight)
    full = {"mode": "full"}
    assert kept(recompute=full) == kept(recompute=full, precision=eight)
    assert working(recompute=full) - working(recompute=full, precision=eight) == 8192 * (2 * 5120 + 14336)
    frozen = {"tower": 0, "projector": 1, "decoder": 0}
    assert kept(train=frozen) == kept(train=frozen, precision=eight)


def test_recomputation_and_pipelines_in_activations() -> None:
    kept = {
        mode: rank_memory(stage(recompute={"mode": mode}), APRIEL, Layout(), 0).activations
        for mode in ("none", "selective", "full")
    }
    assert kept["full"] < kept["selective"] < kept["none"]
    assert kept["none"] == 2 * 8192 * 48 * layer_elements(APRIEL.decoder, "none", 1, False, True)
    half = rank_memory(stage(recompute={"mode": "full", "layers": 24}), APRIEL, Layout(), 0).activations
    assert kept["full"] < half < kept["none"]
    assert half == 2 * 8192 * 24 * (layer_elements(APRIEL.decoder, "none", 1, False, True) + 5120)
    assert [micro_batches_in_flight(Layout(4, pipeline=4), rank, 16) for rank in range(4)] == [4, 3, 2, 1]
    assert micro_batches_in_flight(Layout(4, pipeline=4), 0, 2) == 2
    # Megatron's schedule: 2 x (4 - 1) + (2 - 1) x 4 warm-up chunks and one more, of two chunks a rank.
    assert micro_batches_in_flight(Layout(4, pipeline=4, virtual=2), 0, 16) == 11 / 2


@pytest.mark.parametrize(("pipeline", "virtual"), [(2, 2), (2, 6), (4, 2), (4, 3), (8, 2)])
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_micro_batches_in_flight_are_those_of_megatrons_schedule(pipeline: int, virtual: int, rounds: int) -> None:
    """Its forward passes in order, and after the warm-up a backward pass after each, of the last chunk first."""
    micro_batches, layout = pipeline * rounds, Layout(pipeline, pipeline=pipeline, virtual=virtual)
    chunks = [chunk for _, chunk in get_schedule_table(micro_batches, virtual, pipeline)]
    for rank in range(pipeline):
        warm_up = 2 * (pipeline - rank - 1) + (virtual - 1) * pipeline
        kept, fullest, of_first_chunk = [0] * virtual, 0, 0
        for step, chunk in enumerate(chunks):
            kept[chunk] += 1
            fullest, of_first_chunk = max(fullest, sum(kept)), max(of_first_chunk, kept[0])
            if step >= warm_up:
                kept[virtual - 1 - chunks[step - warm_up]] -= 1
        assert micro_batches_in_flight(layout, rank, micro_batches) == fullest / virtual
        if rank == 0:
            assert sequences_of_images_in_flight(layout, micro_batches) == of_first_chunk


def test_images_of_an_interleaved_schedule() -> None:
    """Twice as many micro-batches of images wait on the first rank; what does not wait is counted once."""
    changes = {"train": {"tower": 1, "decoder": 1}, "sequence_length": 8192, "batch_tokens": 8192 * 16}
    plain, interleaved = (
        rank_memory(stage(**changes), APRIEL, Layout(4, pipeline=4, virtual=virtual), 0).images for virtual in (1, 2)
    )
    once = 2 * 8192 * (768 + 5120)
    assert interleaved - once == pytest.approx(2 * (plain - once))


def test_a_trained_tower_needs_more_than_a_frozen_one() -> None:
    frozen = rank_memory(stage(), APRIEL, Layout(8, tensor=8), 0).images
    trained = rank_memory(stage(train={"tower": 1, "decoder": 1}), APRIEL, Layout(8, tensor=8), 0).images
    recomputed = stage(train={"tower": 1, "decoder": 1}, recompute={"mode": "full"})
    assert frozen < rank_memory(recomputed, APRIEL, Layout(8, tensor=8), 0).images < trained
    assert rank_memory(stage(train={"decoder": 1}), Architecture(APRIEL.decoder), Layout(), 0).images == 0
