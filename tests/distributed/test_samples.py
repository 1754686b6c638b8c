"""Generations during training: transformers' own greedy ones, on every kind of layout, and training none the wiser."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stage_runs import ARCHITECTURE, losses, records, run, stage_file, write_inputs

from megatron_apriel.config.load import load_stage
from megatron_apriel.data.corpus.tokens import load_tokenizer
from megatron_apriel.data.loading.prompts import Prompts
from megatron_apriel.errors import ExitCode, printable_lines
from megatron_apriel.formats.run_directory import RunDirectory
from megatron_apriel.parallel.checks import sequence_multiple
from megatron_apriel.parallel.data_place import DataPlace
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.layouts import LAYOUTS
from megatron_apriel.train.trainer import Trainer

MAX_TOKENS = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer and processor, corpora that its tokenizer made, and a picture to ask about."""
    root = write_inputs(tmp_path_factory.mktemp("samples"), sidecars=True)
    pixels = np.random.default_rng(0).integers(0, 255, (20, 28, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "picture.png")
    return root


def settings(root: Path, **section: object) -> str:
    prompts = ["Hi", {"text": "See?", "image": str(root / "picture.png")}, "A"]
    return "samples=" + json.dumps({"prompts": prompts, "every": 4, "max_tokens": MAX_TOKENS, **section})


@pytest.fixture(scope="module")
def alone(root: Path) -> list[dict]:
    """Records of the run with samples in one process."""
    assert run(root, "alone", settings(root)) == [ExitCode.OK]
    return records(root, "alone", "samples")


def generated(final: Path, picture: Path | None, text: str, chat: bool = True) -> list[int]:
    """What transformers makes of the result, greedily."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(final)
    image = [{"type": "image", "image": Image.open(picture)}] if picture is not None else []
    messages = [{"role": "user", "content": [*image, {"type": "text", "text": text}]}]
    if chat:
        inputs = processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
        )
    else:
        inputs = {"input_ids": torch.tensor([[1, *processor.tokenizer.encode(text, add_special_tokens=False)]])}
    model = AutoModelForImageTextToText.from_pretrained(final, dtype=torch.float32)
    output = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
    return output[0, inputs["input_ids"].shape[1] :].tolist()


def expected(final: Path, ids: list[int]) -> str:
    tokenizer = load_tokenizer(final)
    return printable_lines(tokenizer.decode([token for token in ids if token != tokenizer.eos_token_id]))


def test_they_are_what_transformers_generates_from_the_result(root, alone):
    assert [record["step"] for record in alone] == [4, 6]
    final = RunDirectory(root / "alone").final
    for sample in alone[-1]["samples"]:
        ids = generated(final, Path(sample["image"]) if sample["image"] else None, sample["prompt"])
        assert sample["text"] == expected(final, ids)
        assert sample["tokens"] == len(ids)
    assert len({sample["text"] for sample in alone[-1]["samples"]}) > 1


def test_plain_text_is_continued(root):
    assert run(root, "plain", settings(root, prompts=["Hi"], chat=False), "validation=null") == [ExitCode.OK]
    final = RunDirectory(root / "plain").final
    (sample,) = records(root, "plain", "samples")[-1]["samples"]
    assert sample["text"] == expected(final, generated(final, None, "Hi", chat=False))


def test_training_is_the_same_to_the_bit(root, alone):
    assert run(root, "without") == [ExitCode.OK]
    assert losses(root, "without") == losses(root, "alone")
    for name in ("gradient_norm", "lr", "loss_tokens"):
        assert [one[name] for one in records(root, "without", "step")] == [
            one[name] for one in records(root, "alone", "step")
        ]
    for file in RunDirectory(root / "without").final.glob("*.safetensors"):
        assert file.read_bytes() == (RunDirectory(root / "alone").final / file.name).read_bytes()


@pytest.mark.parametrize(
    "name", ["TP2", "TP2 SP", "PP2", "PP2 VP2 overlap", "DP2 overlap", "CP2", "TP2 SP CP2", "TP2 SP PP2 recompute"]
)
def test_every_layout_says_the_same(root, alone, name):
    setup = LAYOUTS[name]
    output = name.replace(" ", "_")
    ranks = setup.layout.world_size
    assert run(root, output, *setup.overrides, settings(root), "tokens=2048", ranks=ranks) == [ExitCode.OK] * ranks
    (record,) = records(root, output, "samples")
    shorter = "one_short"
    if not (root / shorter).exists():
        assert run(root, shorter, settings(root), "tokens=2048") == [ExitCode.OK]
    (reference,) = records(root, shorter, "samples")
    assert record["samples"] == reference["samples"]


def test_they_are_printed_and_plotted(root, capfd):
    pytest.importorskip("wandb")
    logging = "logging={tensorboard: true, wandb: offline}"
    assert run(root, "printed", settings(root), "tokens=512", logging) == [ExitCode.OK]
    printed = capfd.readouterr().out
    (record,) = records(root, "printed", "samples")
    (table,) = (root / "printed" / "wandb").glob("offline-run-*/files/media/table/samples/*.table.json")
    assert [row[2] for row in json.loads(table.read_text())["data"]] == [one["text"] for one in record["samples"]]
    assert f"step 1/1 | sample: [{root / 'picture.png'}] See?" in printed
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = events.EventAccumulator(str(root / "printed" / "tensorboard"))
    accumulator.Reload()
    tags = [tag for tag in accumulator.Tags()["tensors"] if "See?" in tag]
    (tag,) = tags
    shown = accumulator.Tensors(tag)[0].tensor_proto.string_val[0].decode()
    assert record["samples"][1]["text"].split("\n")[0] in shown


def test_a_secret_in_a_path_is_not_recorded(root, monkeypatch, capfd):
    monkeypatch.setenv("SAMPLES_PLACE", secret := "s3cret-place-77")
    (root / secret).mkdir()
    (root / secret / "p.png").write_bytes((root / "picture.png").read_bytes())
    prompt = {"text": "See\x1b[2J", "image": f"{root}/${{SAMPLES_PLACE}}/p.png"}
    assert run(root, "secret", settings(root, prompts=[prompt]), "tokens=512") == [ExitCode.OK]
    written = (root / "secret" / "metrics.jsonl").read_text()
    printed = capfd.readouterr().out
    assert "${SAMPLES_PLACE}/p.png" in written and "${SAMPLES_PLACE}/p.png" in printed
    assert secret not in written + printed and "\x1b" not in printed


def test_a_request_to_stop_is_not_kept_waiting(root, monkeypatch):
    evaluate = Trainer.evaluate

    def evaluated(trainer, *arguments, **options):
        if options.get("objective") is not None:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(trainer, *arguments, **options)

    monkeypatch.setattr(Trainer, "evaluate", evaluated)
    assert run(root, "stopped", settings(root, every=1), "validation=null") == [ExitCode.REQUEUE]
    assert records(root, "stopped", "samples") == []
    assert [one["step"] for one in records(root, "stopped", "step")] == [1]


@pytest.mark.parametrize("precision", ["fp32", "bf16, fp8: tensorwise", "bf16, fp8: blockwise"])
@pytest.mark.parametrize("parallel", ["{}", "{context: 2}", "{tensor: 2, sequence: true}", "{tensor: 2, context: 2}"])
def test_every_layout_and_recipe_can_run_a_prompts_sequence(root: Path, parallel: str, precision: str) -> None:
    """Though it is shorter than a training sequence, of which the same is checked."""
    overrides = [f"parallel={parallel}", f"precision={{compute: {precision}}}", "sequence_length=4096"]
    config = load_stage(stage_file(root, "prompts"), [*overrides, "batch_tokens=4096", settings(root)])
    size = config.parallel.tensor * config.parallel.context
    layout = Layout(size, tensor=config.parallel.tensor, context=config.parallel.context)
    for rank in range(size):
        prompts = Prompts(config, ARCHITECTURE, DataPlace.of(layout, rank), root / "model", "floor")
        assert prompts.length % sequence_multiple(config)[0] == 0 and prompts.length < 4096


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"prompts": [{"text": "x", "image": "absent.png"}]}, "samples.prompts.0 cannot be used"),
        ({"prompts": ["word " * 200]}, "sequence_length is 128"),
        ({"max_tokens": 128}, "sequence_length is 128"),
    ],
)
def test_refused_before_training(root, section, message):
    with pytest.raises(Exception, match=message):
        run(root, "refused", settings(root, **section))
    assert not records(root, "refused", "step")
