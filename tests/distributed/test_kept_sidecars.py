"""What lies beside the weights that a run writes is what the run trained with, whatever happens to other copies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from stage_runs import run, stage_file, write_inputs

from megatron_apriel.checkpoint.convert import convert, plan_conversion
from megatron_apriel.config.load import load_stage
from megatron_apriel.data.corpus.chat import exported_chat_template
from megatron_apriel.errors import CheckpointError, ExitCode
from megatron_apriel.formats.kinds import Kind
from megatron_apriel.formats.run_directory import RunDirectory
from megatron_apriel.testing.ranks import run_ranks
from megatron_apriel.testing.word_patterns import LLAMA3, byte_level, sequence, set_words, split
from megatron_apriel.train import run as run_module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A model with its tokenizer, processor and a chat template of its own, and corpora that its tokenizer made."""
    return write_inputs(tmp_path, sidecars=True)


def spoil(directory: Path) -> None:
    """Another tokenizer, template and processor, as of a model that was converted again."""
    set_words(directory, sequence(split(LLAMA3), byte_level(False)))
    (directory / "chat_template.jinja").write_text("{{ bos_token }}")
    spoil_processor(directory)


def spoil_processor(directory: Path) -> None:
    file = directory / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["image_processor"]["image_mean"] = [0.5, 0.5, 0.5]
    file.write_text(json.dumps(settings))


def test_a_model_that_changes_while_a_run_trains_changes_nothing(root, monkeypatch):
    """Checkpoints have the template of the corpora as well, and so has what is converted from one."""
    given = {name: (root / "model" / name).read_bytes() for name in ("tokenizer.json", "processor_config.json")}
    train = run_module.train

    def disturbed(*arguments):
        spoil(root / "model")
        return train(*arguments)

    monkeypatch.setattr(run_module, "train", disturbed)
    assert run(root, "changed") == [ExitCode.OK]
    directory = RunDirectory(root / "changed")
    step = directory.checkpoints / "step_00000004"
    convert(plan_conversion(step, Kind.HF), root / "converted")
    for written in (directory.final, step / "hf", root / "converted"):
        assert (written / "tokenizer.json").read_bytes() == given["tokenizer.json"]
        assert json.loads((written / "processor_config.json").read_text()) == {
            name: value for name, value in json.loads(given["processor_config.json"]).items() if name != "chat_template"
        }
        assert (written / "chat_template.jinja").read_text() == exported_chat_template()


CHANGES = {
    "tokenizer": lambda kept: set_words(kept, sequence(split(LLAMA3), byte_level(False))),
    "no tokenizer": lambda kept: (kept / "tokenizer.json").unlink(),
    "chat template": lambda kept: (kept / "chat_template.jinja").write_text("{{ bos_token }}"),
    "no chat template": lambda kept: (kept / "chat_template.jinja").unlink(),
    "processor": spoil_processor,
    "another file": lambda kept: (kept / "LICENSE").write_text("another"),
    "other spaces": lambda kept: (kept / "tokenizer.json").write_text(
        json.dumps(json.loads((kept / "tokenizer.json").read_text()), indent=3)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_the_runs_own_copy_are_refused_or_harmless(change, root, monkeypatch, capfd):
    kept, train = RunDirectory(root / "trial").sidecars, run_module.train

    def disturbed(stage, stop):
        if stage.sidecars.began is not None:
            CHANGES[change](kept)
        return train(stage, stop)

    def attempt(rank: int, size: int) -> str:
        try:
            return str(run_module.run_stage(load_stage(stage_file(root, "trial"))))
        except CheckpointError as error:
            return str(error)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "train", disturbed)
        said = run_ranks(1, attempt)
    if change in ("another file", "other spaces"):
        assert said == [str(ExitCode.OK)]
        assert ("LICENSE in" in capfd.readouterr().err) == (change == "another file")
        return
    assert f"the {change.removeprefix('no ')} in {kept} is not the one that the run trained with" in said[0]
    # The way out that it names.
    assert run(root, "trial") == [ExitCode.OK]
    assert (root / "trial" / "final" / "chat_template.jinja").read_text() == exported_chat_template()
    shutil.rmtree(root / "trial")
