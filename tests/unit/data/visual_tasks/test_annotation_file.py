"""An annotation file is read entry by entry: any number of categories, nothing that grows, everything wrong named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_apriel.data.visual_tasks import annotated, coco_file
from megatron_apriel.data.visual_tasks.coco import Annotations, read_annotations
from megatron_apriel.data.visual_tasks.coco_file import Category, read_document
from megatron_apriel.data.visual_tasks.tasks import Menu
from megatron_apriel.testing.limits import check_cost, measured, refused_within


def document(categories: int, images: int = 50) -> dict[str, Any]:
    """Every category three times, in images taken in turn."""
    return {
        "info": {"year": 2017},
        "annotations": [
            {
                "image_id": number % images,
                "category_id": number % categories,
                "bbox": [10.0 + number % 7 + 100 * (number // categories), 20, 200, 150],
                "iscrowd": 0,
                "segmentation": [[1.5, 2.5] * 8],
            }
            for number in range(3 * categories)
        ],
        "images": [{"id": n, "file_name": f"{n}.png", "width": 640, "height": 480} for n in range(images)],
        "categories": [{"id": n, "name": f"kind {n}", "supercategory": f"{n % 40}"} for n in range(categories)],
    }


def read(file: Path, images: int = 50) -> Annotations:
    return read_annotations(file, {f"{n}.png": n for n in range(images)}, dict.fromkeys(range(images), (640, 480)))


class Counted(str):
    """A name that counts how often names are compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)

    def __lt__(self, other: str) -> bool:
        Counted.compared += 1
        return str.__lt__(self, other)


def test_the_work_for_a_category_does_not_grow_with_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = coco_file._category

    def counted(entry: Any, where: str) -> Category:
        category = sound(entry, where)
        return Category(category.identity, Counted(category.name), Counted(category.supercategory))

    monkeypatch.setattr(coco_file, "_category", counted)
    work = {}
    for number in (1000, 20_000):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(document(number)))
        Counted.compared = 0
        annotations = read(file)
        Menu.of(("detect", "count"), None, annotations)
        assert len(annotations.categories) == number
        work[number] = Counted.compared / number
    assert work[20_000] <= 1.5 * work[1000] + 1


def test_what_all_samples_ask_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(document(500)))
    annotations = read(file)
    sorted_whole, unique = list[int](), np.unique

    def counted(values: Any, **options: Any) -> Any:
        sorted_whole.append(len(values))
        return unique(values, **options)

    monkeypatch.setattr(np, "unique", counted)
    for _ in range(20):
        annotated.askable_categories(annotations)
        annotated._cells(annotations, 3)
        annotated._numbers(annotations.groups, 9)
        annotated._pairs(annotations.groups, 9)
    # Groups, groups by category, categories that are shown; by cell, by number, by number of pairs.
    assert len(sorted_whole) == 6


def test_groups_of_a_category(tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(document(30, images=7)))
    groups = read(file, images=7).groups
    for category in range(30):
        assert groups.of_category[category].tolist() == np.nonzero(groups.category == category)[0].tolist()


def test_entries_are_those_of_the_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    whole = document(20)
    file.write_text(json.dumps(whole, indent=1))
    found = read_document(file)
    assert [(image.identity, image.file_names[0], image.size) for image in found.images] == [
        (image["id"], image["file_name"], (640, 480)) for image in whole["images"]
    ]
    assert [(one.identity, one.name, one.supercategory) for one in found.categories] == [
        (one["id"], one["name"], one["supercategory"]) for one in whole["categories"]
    ]
    assert found.boxes == [
        (one["image_id"], one["category_id"], tuple(one["bbox"]), False, False) for one in whole["annotations"]
    ]


def entry(text: str) -> Callable[[Path], None]:
    """A file whose one annotation is this text."""
    return lambda file: file.write_text(f'{{"images": [], "categories": [], "annotations": [{text}]}}') and None


def sparse(file: Path) -> None:
    with file.open("wb") as stream:
        stream.write(b'{"images": [')
        stream.truncate(2**40)


GROWING: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a polygon without end": (entry('{"segmentation": [' + "1," * 5_000_000 + "1]}"), "too many values"),
    "lists in an entry": (entry("[" * 2_000_000 + "]" * 2_000_000), "recursion"),
    "a word without end": (entry('{"a": "' + "x" * 9_000_000 + '"}'), "longer than 4,194,304 bytes"),
    "digits": (entry('{"image_id": ' + "9" * 100_000 + "}"), "Exceeds the limit"),
    "a box of many numbers": (
        entry('{"image_id": 1, "category_id": 1, "bbox": [' + "1," * 1_000_000 + "1]}"),
        "is not [left, top, width, height] in pixels",
    ),
    "beside the lists": (
        lambda file: file.write_text('{"info": ["' + "x" * 9_000_000 + '"]}'),
        "longer than 4,194,304 bytes",
    ),
    "spaces": (lambda file: file.write_text("{" + " " * 20_000_000), "are not JSON"),
    "zeros": (sparse, "are not JSON"),
    "nested supercategory": (
        lambda file: file.write_text(
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a", "supercategory": '
            + "[" * 500 + "]" * 500 + "}]}"
        ),
        "is no text",
    ),
    "pipe": (os.mkfifo, "it is a pipe"),
    "device": (lambda file: file.symlink_to("/dev/zero"), "it is a device"),
}  # fmt: skip


@pytest.mark.parametrize("kind", GROWING)
def test_files_that_grow_or_never_end(kind: str, tmp_path: Path) -> None:
    make, message = GROWING[kind]
    make(tmp_path / "instances.json")
    refusal = refused_within(read_document, tmp_path / "instances.json")
    assert refusal.startswith("DataError: ") and message in refusal and "instances.json" in refusal
    assert len(refusal) < 1000


def test_a_list_that_nobody_asked_for_is_passed_over_piece_by_piece(tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    whole = document(10)
    file.write_text('{"licenses": [' + "[]," * 1_000_000 + "[]], " + json.dumps(whole)[1:])
    spent = measured(lambda: len(read_document(file).categories))
    assert spent.result == "10"
    check_cost(spent, seconds=10, mebibytes=64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [], "images": []}', "'images' is there twice"),
        ('{"images": [], "annotations": {}, "categories": []}', "has no list 'annotations'"),
        ('{"images": [{"id": 1, "id": 2}], "annotations": [], "categories": []}', "images[0] cannot be read: 'id'"),
        ('{"images": [3], "annotations": [], "categories": []}', "images[0] needs 'id'"),
        (
            '{"images": [{"id": true}], "annotations": [], "categories": []}',
            "images[0] needs 'id' (int or str); it has True",
        ),
        ('{"images": []} x', "something follows the object's end"),
        ('{"info": [1 2]}', "',' is expected"),
        ('{"images" []}', "':' is expected"),
        ("{images: []}", "a name in quotes is expected"),
        ('{"images": [', "are not JSON"),
        ('{"\udcff": []}', "are not JSON: a name is no UTF-8"),
        ('{"\udced\udcb2\udc80": 1}', "are not JSON: a name is no UTF-8"),
        ('{"images": [{"id": 1, "file_name": "\udcff"}]}', "images[0] cannot be read"),
        ("\udcff", "are not JSON"),
        ("3", "are not JSON"),
        ("", "are not JSON"),
    ],
)
def test_what_is_no_annotation_file(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    file.write_text(text, errors="surrogateescape")
    assert message in refused_within(read_document, file)
