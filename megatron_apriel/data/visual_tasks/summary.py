"""What was found in a folder and what was made of it, counted on the way and written down as ``manifest.json``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_apriel.data.visual_tasks.generator import Made
from megatron_apriel.data.visual_tasks.options import Options
from megatron_apriel.data.visual_tasks.refusals import WrongAnswer
from megatron_apriel.quantities import counted

KEPT = 1000
"""Unusable files that a manifest lists one by one, and samples that were drawn again."""
_WRONG_AT_MOST = 10  # samples whose check fails, before their share counts


@dataclass
class Summary:
    """What was found and made.

    Attributes:
        files: image files in the folder.
        others: other files there.
        unusable: files passed over and why, damaged ones found later included.
        usable: images that can be used.
        annotated: images with annotations.
        annotation_problems: what of the annotations was passed over.
        made: samples of each "task variant".
        pictures: files written.
        rejected: pictures drawn in vain, by "task variant: reason".
        wrong: samples that were drawn again because their pictures gave another answer.
        left_out: variants of which the images gave no samples, with the reasons.
    """

    files: int = 0
    others: int = 0
    unusable: dict[str, str] = field(default_factory=dict)
    usable: int = 0
    annotated: int = 0
    annotation_problems: dict[str, int] = field(default_factory=dict)
    made: Counter[str] = field(default_factory=Counter)
    pictures: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def found(self) -> str:
        """How many of the files cannot be used, with examples, as a sentence."""
        first = [f"{name} {problem}" for name, problem in list(self.unusable.items())[:3]]
        examples = f", for example: {'; '.join(first)}" if first else ""
        return f"Of {counted(self.files, 'image file')}, {len(self.unusable):,} cannot be used{examples}."

    def take(self, made: Made, max_wrong: float) -> None:
        """Count a sample. Raises WrongAnswer if too many were drawn again because of their answers."""
        self.made[f"{made.record['task']} {made.record['variant']}"] += 1
        self.pictures += len(made.files)
        self.rejected += made.rejected
        self.unusable |= {name: f"is damaged: {reason}" for name, reason in made.damaged.items()}
        self.wrong += made.wrong
        samples = self.made.total()
        if len(self.wrong) > max(_WRONG_AT_MOST, max_wrong * samples):
            raise WrongAnswer(
                f"of {counted(samples, 'sample')}, {len(self.wrong):,} had an answer that their pictures do not give,"
                f" more than {max_wrong:.1%}.",
                f"The last: {self.wrong[-1]}.",
                "Look at the images it names. Allow more with --max-wrong, or leave the task out with --tasks.",
            )

    def forget_samples(self) -> None:
        """Count no sample any more: they are made again."""
        self.made, self.pictures, self.rejected, self.wrong = Counter(), 0, Counter(), []

    def manifest(self, images: Path, annotations: Path | None, options: Options) -> dict[str, Any]:
        """What ``manifest.json`` says of samples that were made of ``images``."""
        tasks = Counter[str]()
        for name, count in self.made.items():
            tasks[name.partition(" ")[0]] += count
        return {
            "format": 1,
            "options": {
                "images": str(images),
                "annotations": None if annotations is None else str(annotations),
                "samples": options.samples,
                "seed": options.seed,
                "difficulty": str(options.difficulty),
                "tasks": list(options.tasks),
                "weights": None if options.weights is None else list(options.weights),
                "max_side": options.max_side,
                "image_format": options.image_format,
                "quality": options.quality,
                "max_pixels": options.limits.pixels,
                "max_wrong": options.max_wrong,
            },
            "images": {
                "files": self.files,
                "usable": self.usable,
                "other_files": self.others,
                "unusable": len(self.unusable),
                "first_unusable": dict(sorted(self.unusable.items())[:KEPT]),
                "annotated": self.annotated,
                "annotation_problems": self.annotation_problems,
            },
            "made": {"samples": options.samples, "pictures": self.pictures, "tasks": dict(sorted(tasks.items()))},
            "variants": dict(sorted(self.made.items())),
            "rejected": dict(sorted(self.rejected.items())),
            "wrong": {"samples": len(self.wrong), "first": self.wrong[:KEPT]},
            "left_out": self.left_out,
        }
