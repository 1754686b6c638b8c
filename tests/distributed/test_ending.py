"""The last lines of a complete run, and of a second start behind it."""

from __future__ import annotations

import os
import shlex
import shutil
import signal

import pytest
from stage_runs import before_step, run

from megatron_apriel.data.corpus.chat import exported_chat_template
from megatron_apriel.errors import ExitCode

SHORT = ("tokens=512", "validation=null")


@pytest.fixture
def model(root):
    """The model with a chat template of its own; taken away again."""
    file = root / "model" / "chat_template.jinja"
    yield file
    file.unlink(missing_ok=True)


def last_lines(capfd) -> list[str]:
    printed = capfd.readouterr().out.splitlines()
    first = next(place for place, line in enumerate(printed) if line.startswith("trial: complete"))
    return printed[first:]


@pytest.mark.parametrize(
    ("template", "words"),
    [("{{ bos_token }}", "was replaced"), (None, "had none"), (exported_chat_template(), None)],
    ids=["another", "none", "the same"],
)
def test_where_the_result_is_and_how_to_chat(root, model, capfd, template, words):
    if template is not None:
        model.write_text(template)
    name = "end of a run"  # quoted in the command
    for _ in range(2):
        assert run(root, name, *SHORT, ranks=2) == [ExitCode.OK] * 2
        complete, *middle, chat = last_lines(capfd)
        assert complete == f"trial: complete, its 1 step is done; the result is in {root / name / 'final'}"
        assert chat == f"chat with it: {shlex.join(['python', 'tools/chat.py', str(root / name / 'final')])}"
        assert len(middle) == (words is not None)
        assert all(words in line and str(root / "model") in line for line in middle)
    shutil.rmtree(root / name)


def test_without_an_export_the_way_to_one_is_named(root, capfd):
    assert run(root, "kept", *SHORT, "checkpoint.export=false") == [ExitCode.OK]
    checkpoint = root / "kept" / "checkpoints" / "step_00000001"
    complete, convert = last_lines(capfd)
    assert complete.endswith(f"the result is in {checkpoint}")
    assert f"python tools/convert_checkpoint.py {checkpoint} DST --to hf" in convert


def test_a_stopped_run_is_not_complete(root, capfd, monkeypatch):
    before_step(monkeypatch, 1, lambda rank: os.kill(os.getpid(), signal.SIGTERM))
    assert run(root, "stopped") == [ExitCode.REQUEUE]
    assert "complete" not in capfd.readouterr().out
