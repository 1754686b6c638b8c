"""What a stage learns from: the sources of its mixture, and how their images are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from megatron_apriel.config.choices import Damaged, ImageDevice, LongDocuments, LossOn, WithoutTargets
from megatron_apriel.config.section import Fraction, Number, PathValue, Section, Whole, raise_all
from megatron_apriel.errors import shown
from megatron_apriel.quantities import spelled

SMALLEST_WEIGHT = 1e-6
"""Of a source in a mixture: weights become fractions of whole numbers up to a million (``data/loading/mixture.py``)."""


class SourceSection(Section):
    """One source of a mixture: a prepared corpus and its share of the tokens."""

    corpus: PathValue
    """Directory that `tools/prepare_data.py` wrote."""
    weight: Fraction = 1.0
    """Share of the stage's tokens; the weights of a mixture sum to 100%, and 0 leaves the source out. Where no source
    has one, all have the same."""
    loss: LossOn = "all"
    """Which tokens are targets: every text token, or those of responses. Image tokens never are."""
    name: str = ""
    """How the source is called in logs; the corpus directory's name where empty."""
    long_documents: LongDocuments = "error"
    """What happens to a document longer than the sequence."""
    without_targets: WithoutTargets = "error"
    """What happens to a document that has no target, or none that is left where it was cut."""
    max_epochs: Annotated[Number, Field(gt=0)] | None = None
    """Most passes over the corpus; more would be an error. `null`: as many as its share of the tokens needs."""

    renamed: ClassVar[Mapping[str, str]] = {
        "epochs": "A source has max_epochs, a bound: a run that would need more is refused. A stage has epochs."
    }

    @property
    def label(self) -> str:
        return self.name or Path(spelled(self.corpus)).name or spelled(self.corpus)


def unique_labels(sources: list[SourceSection]) -> list[SourceSection]:
    """``sources``, whose names in logs must differ. Raises ValueError."""
    labels = Counter(source.label for source in sources)
    twice = sorted(label for label, count in labels.items() if count > 1)
    raise_all(f"two sources are called {shown(label)}; give each its own name" for label in twice)
    return sources


class ImagesSection(Section):
    """How images are decoded and resized; must agree with the tower that reads them."""

    device: ImageDevice = "auto"
    """Where DALI decodes; `auto`: on the GPU where there is one."""
    threads: Annotated[Whole, Field(ge=1, le=1024)] = 4
    """Decoding threads of each rank."""
    required: bool = True
    """Tower and projector train only on a mixture with images; `false`: on any, where weight decay may be all."""
    damaged: Damaged = "error"
    """A damaged image ends the run, or its patches are left grey and the event is counted and logged."""
    max_pixels: Annotated[Whole, Field(ge=1)] = 100_000_000
    """Largest image that is decoded, height x width of the stored file; `--max-pixels` of `tools/prepare_data.py`."""
