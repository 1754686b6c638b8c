"""The targets by name; one file for each kind of input."""

from __future__ import annotations

from ..case import Target
from .annotations import AnnotationFiles, PictureFolders
from .answers import Answers
from .chat import ChatRecords
from .configurations import HardwareFiles, Quantities, StageFiles
from .corpora import Corpora, PackingPlans
from .distributed import DistributedCheckpoints
from .images import Images
from .models import ModelDirectories
from .records import JsonFiles, SavedDatasets, Tables
from .scores import Scores
from .tars import Tars


def targets() -> dict[str, Target]:
    """All targets, in the order in which they take turns."""
    made: list[Target] = [
        StageFiles(),
        HardwareFiles(),
        Quantities(),
        ModelDirectories(),
        DistributedCheckpoints(),
        Corpora(),
        PackingPlans(),
        JsonFiles(),
        Tables(),
        SavedDatasets(),
        Tars(),
        Images(),
        AnnotationFiles(),
        PictureFolders(),
        ChatRecords(),
        Scores(),
        Answers(),
    ]
    return {target.name: target for target in made}
