"""What lies in a run's output directory, and which of its checkpoints are whole. No torch.

::

    OUTPUT/
      config.resolved.yaml          the configuration, every value written out
      checkpoints/
        step_00000500/              whole: it got this name when all of it was on disk
          *.distcp, .metadata       weights and optimizer state
          hf/                       config, tokenizer and processor files
          run.json                  step, layout, the run's own state, sizes of all files; written last
        step_00001000.partial/      being written, or what a killed run left of it
      hf/                           the run's own copy of config, tokenizer, template and processor files
      evaluations/                  of its checkpoints, by a command beside the run (``run_evaluations.py``)
      final/                        the result, a Hugging Face directory
      .final-outdated               while ``final`` is of an earlier training, whose checkpoints were taken away
      .stopped-early                after a start that was stopped before it finished a step: the reason
      .lock                         held by the run that writes here

A checkpoint that has its name and lacks ``run.json`` was whole and is damaged now: whoever reads it says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from megatron_apriel.errors import OutputError, printable

RUN_FILE = "run.json"
"""Written last into a distributed checkpoint: step, layout, sizes of all files, the run's own state."""
METADATA_FILE = ".metadata"
"""In a distributed checkpoint: which tensor lies where, as torch writes it."""
SIDECAR_DIRECTORY = "hf"
"""Inside a distributed checkpoint, or a run's output: config, tokenizer, template and processor files."""

_OTHERS = {"corpus.json": "a corpus", "config.json": "a model", "params.json": "a model", "*.safetensors": "a model"}
"""Files that a run's output does not hold itself, and whose they are."""
_NAME = re.compile(r"step_([0-9]{8,})")
_PARTIAL = ".partial"


@dataclass(frozen=True)
class RunDirectory:
    """The output directory of a run, there or not."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.path / "checkpoints"

    @property
    def final(self) -> Path:
        """Its result."""
        return self.path / "final"

    @property
    def metrics(self) -> Path:
        """Its figures, a record a line."""
        return self.path / "metrics.jsonl"

    @property
    def evaluations(self) -> Path:
        """The folder of what its checkpoints were evaluated to."""
        return self.path / "evaluations"

    @property
    def outdated(self) -> Path:
        """There while :attr:`final` is of an earlier training."""
        return self.path / ".final-outdated"

    @property
    def sidecars(self) -> Path:
        """The run's copy of config, tokenizer, template and processor files."""
        return self.path / SIDECAR_DIRECTORY

    @property
    def resolved_config(self) -> Path:
        return self.path / "config.resolved.yaml"

    @property
    def stopped_early(self) -> Path:
        """There after a start that was stopped before it finished a step; says why."""
        return self.path / ".stopped-early"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    def check_own(self) -> None:
        """Raise OutputError if the directory is a model's or a corpus's.

        Who replaces such a directory later, as ``--overwrite`` does, would take the run with it.
        """
        for pattern, what in _OTHERS.items():
            if found := sorted(self.path.glob(pattern)):
                raise OutputError(
                    f"the output {self.path} is the directory of {what}: it holds {printable(found[0].name)}.",
                    "A run there would be lost with it.",
                    "Give another output, a directory of the run's own.",
                )


def is_checkpoint(path: Path) -> bool:
    """Whether ``path`` is a run's distributed checkpoint, damaged or not; torch's own, of other trainers, is none."""
    return (path / RUN_FILE).exists() or ((path / METADATA_FILE).exists() and (path / SIDECAR_DIRECTORY).is_dir())


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies among those in ``folder``."""
    return folder / f"step_{step:08d}"


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """The checkpoints in ``folder`` that were whole when they were written, by step, oldest first.

    Their files are not looked at. A folder that is not there has none.
    """
    if not folder.is_dir():
        return {}
    found = {int(match[1]): path for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


def partial_of(path: Path) -> Path:
    """Where the checkpoint at ``path`` is while it is not whole, or no more."""
    return path.with_name(path.name + _PARTIAL)


def former_of(path: Path) -> Path:
    """Where an earlier checkpoint is while another takes its place at ``path``; never read."""
    return partial_of(path.with_name(f"{path.name}.former"))


def partials_in(folder: Path) -> list[Path]:
    """What runs left in ``folder`` of checkpoints that are not whole."""
    return sorted(folder.glob(f"step_*{_PARTIAL}"))
