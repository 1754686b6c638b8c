"""What a complete run says last: that it is complete, where the result is, what changed beside it, what comes next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.kinds import sidecar_directory
from megatron_apriel.formats.sidecars import chat_template
from megatron_apriel.quantities import counted


def ending(config: StageConfig, final: Path | None, checkpoint: Path | None) -> Iterator[str]:
    """The last lines of a run whose steps are all done.

    Args:
        config: of the stage.
        final: the exported result; None where none was asked for.
        checkpoint: the newest one.
    """
    steps = f"all {counted(config.steps, 'step')} are" if config.steps > 1 else "its 1 step is"
    yield f"{config.stage}: complete, {steps} done; the result is in {final or checkpoint}"
    if final is None:
        command = _command("tools/convert_checkpoint.py", checkpoint, "DST", "--to", "hf")
        yield f"to chat with it or serve it, make a Hugging Face directory of it: {command}"
        return
    if (replaced := _replaced_template(config.init_from, final)) is not None:
        yield replaced
    yield f"chat with it: {_command('tools/chat.py', final)}"


def _command(*words: object) -> str:
    return shlex.join(["python", *map(str, words)])


def _replaced_template(given: Path, final: Path) -> str | None:
    """A line if the result has another chat template than the model that the stage began with.

    None if it has the same, or if that model no longer exists.
    """
    try:
        theirs, ours = chat_template(sidecar_directory(given)), chat_template(final)
    except CheckpointError:
        return None
    if theirs == ours:
        return None
    had = f"{given} had none" if theirs is None else f"that of {given} was replaced"
    return f"its chat template is the one that conversations of a corpus are rendered by; {had}"
