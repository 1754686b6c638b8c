"""Visual tasks: annotations, each box as a second reading of the JSON gives it, and folders of damaged pictures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from megatron_apriel.data.visual_tasks.annotated import available
from megatron_apriel.data.visual_tasks.coco import Annotations, read_annotations
from megatron_apriel.data.visual_tasks.difficulty import FULL_RANGE, Range
from megatron_apriel.data.visual_tasks.generate import generate
from megatron_apriel.data.visual_tasks.options import Options

from ..case import Target, Wrong
from ..file_changes import Changes, change_files, change_json, copy_honest
from ..json_changes import change_value, write_json
from .images import changed_image, honest_images

_SIDE = 96
_PICTURES = 6


def honest_document() -> dict[str, Any]:
    """Annotations of every picture: one object, several, a crowd, something tiny."""
    names = ("cat", "dog", "cup", "car", "bus")
    categories = [
        {"id": 10 * number + 1, "name": name, "supercategory": "animal" if number < 2 else "thing"}
        for number, name in enumerate(names)
    ]
    images = [
        {"id": 100 + number, "file_name": f"{number}.png", "width": _SIDE, "height": _SIDE - 8}
        for number in range(_PICTURES)
    ]
    boxes = ([3, 4, 30, 40], [50, 40.5, 30, 30.25], [10, 60, 20, 20], [0, 0, 2, 2], [70, 10, 20, 20])
    annotations = [
        {"id": number, "image_id": 100 + number % _PICTURES, "category_id": categories[number % 4]["id"],
        "bbox": list(boxes[number % 5]),
         "iscrowd": int(number == 7), "area": 10.0, "segmentation": [[1, 2, 3, 4, 5, 6]]}
        for number in range(18)
    ]  # fmt: skip
    return {
        "info": {"year": 2017},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


class AnnotationFiles(Target):
    """An annotation file of a small folder of pictures, and now and then the samples made of it."""

    name = "annotations"
    about = "COCO-style annotations of a folder of images"
    guided = "instances.json"

    def make(self, directory: Path) -> None:
        rng = np.random.default_rng(2)
        (directory / "images").mkdir()
        for number in range(_PICTURES):
            pixels = rng.integers(0, 256, (11, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((_SIDE, _SIDE - 8), Image.Resampling.BICUBIC).save(
                directory / "images" / f"{number}.png"
            )
        (directory / "instances.json").write_text(json.dumps(honest_document()), encoding="utf-8")

    def mutate(self, random: Random, directory: Path, changes: int) -> str:
        copy_honest(self.honest, directory)
        done = Changes(random, directory)
        document: Any = honest_document()
        if random.random() < 0.8:
            for _ in range(changes):
                document, what = change_value(random, document, ("iscrowd", "keypoints", "segments_info"))
                done.done.append(what)
            text = write_json(document, ensure_ascii=random.random() < 0.5)
            (directory / "instances.json").write_bytes(text.encode("utf-8", "surrogatepass"))
        else:
            for _ in range(changes):
                done.file("instances.json", lambda data: change_json(random, data))
        if changes and random.random() < 0.05:
            done.files()
        (directory / "make").write_text(str(random.randrange(10) == 0), encoding="utf-8")
        return done.finish()

    def check(self, directory: Path) -> None:
        names = {f"{number}.png": number for number in range(_PICTURES)}
        sizes = dict.fromkeys(range(_PICTURES), (_SIDE, _SIDE - 8))
        file = directory / "instances.json"
        annotations = read_annotations(file, names, sizes)
        _compare(annotations, json.loads(file.read_bytes()), names, sizes)
        available(annotations)
        if (directory / "make").is_file() and (directory / "make").read_bytes() == b"True":
            options = Options(samples=4, tasks=("detect", "count"), max_side=128, difficulty=FULL_RANGE)
            generate(directory / "samples", directory / "images", options, file)


class PictureFolders(Target):
    """A folder of which some pictures are damaged: they are passed over and counted, and samples made of the others."""

    name = "pictures"
    about = "a folder of images of which visual tasks are made"

    def make(self, directory: Path) -> None:
        """Nothing: the pictures are made as they are needed."""

    def mutate(self, random: Random, directory: Path, changes: int) -> str:
        files, done = honest_images(3), []
        (directory / "images").mkdir()
        for number, name in enumerate(random.sample(sorted(files), 5)):
            data = files[name]
            if number < 3 and changes:
                data, what = changed_image(random, name, files, changes)
                done.append(f"{name}: {what}")
            (directory / "images" / f"{number}-{name}").write_bytes(data)
        if changes and random.random() < 0.1:
            done.append(change_files(random, directory / "images"))
        task = random.choice(("reconstruct", "match", "detect", "count"))
        (directory / "task").write_text(f"{task} {random.randrange(100)}", encoding="utf-8")
        return f"{task}: {'; '.join(done)}"

    def check(self, directory: Path) -> None:
        task, seed = (directory / "task").read_text(encoding="utf-8").split()
        options = Options(samples=2, seed=int(seed), tasks=(task,), max_side=128, difficulty=Range(0, 0.3))
        summary = generate(directory / "samples", directory / "images", options)
        records = (directory / "samples" / "records.jsonl").read_text(encoding="utf-8").splitlines()
        pictures = sorted((directory / "samples" / "images").rglob("*.jpg"))
        if len(records) != 2 or len(pictures) != summary.pictures:
            raise Wrong(f"{len(records)} records and {len(pictures)} pictures for 2 and {summary.pictures}")
        for picture in pictures:
            with Image.open(picture) as image:
                image.load()


def _rounded(corners: Sequence[float]) -> tuple[float, ...]:
    return tuple(np.array(corners, dtype=np.float32).tolist())


def _compare(annotations: Annotations, document: Any, names: dict[str, int], sizes: dict[int, tuple[int, int]]) -> None:
    """Raise Wrong if boxes, their categories or their corners are not what the document says."""
    usable = {
        entry["id"]: names[entry["file_name"]]
        for entry in document["images"]
        if names.get(entry["file_name"]) is not None
        and sizes[names[entry["file_name"]]] == (entry["width"], entry["height"])
    }
    label = {entry["id"]: entry["name"] for entry in document["categories"]}
    wanted: Counter[Any] = Counter()
    seen: set[Any] = set()
    for entry in document["annotations"]:
        raw = usable.get(entry["image_id"])
        if raw is None:
            continue
        left, top, width, height = entry["bbox"]
        across, down = sizes[raw]
        corners = [
            min(max(value, 0), side) / side
            for value, side in ((left, across), (top, down), (left + width, across), (top + height, down))
        ]
        empty = corners[2] <= corners[0] or corners[3] <= corners[1]
        box = (raw, entry["category_id"], left, top, width, height)
        crowd = bool(entry.get("iscrowd")) or empty or box in seen
        seen.add(box)
        wanted[(raw, label[entry["category_id"]], _rounded(corners), crowd)] += 1
    found: Counter[Any] = Counter()
    for place, raw in enumerate(annotations.images.tolist()):
        for row in annotations.of_image(place):
            found[(raw, annotations.categories[row[1]], _rounded(row[2:6]), row[6])] += 1
    if found != wanted:
        raise Wrong(f"boxes {dict(found - wanted)} were read, and {dict(wanted - found)} were not")
    if set(annotations.images.tolist()) != set(usable.values()):
        raise Wrong("other images are annotated than the file says")
    if len(annotations.groups.count) and int(annotations.groups.count.sum()) != sum(wanted.values()):
        raise Wrong("the groups do not hold all boxes")
