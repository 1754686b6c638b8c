"""Questions about annotated photographs: answers counted again from the annotation file alone."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from megatron_apriel.data.visual_tasks.generate import prepare_generator
from megatron_apriel.data.visual_tasks.options import Options
from megatron_apriel.data.visual_tasks.summary import Summary
from megatron_apriel.errors import DataError

CATEGORIES = [
    {"id": 3, "name": "cat", "supercategory": "animal"},
    {"id": 1, "name": "cup", "supercategory": "kitchen"},
    {"id": 7, "name": "dog", "supercategory": "animal"},
]


def described(folder: Path) -> dict:
    """COCO instances of the photographs: one to three boxes of a category each, and awkward ones."""
    images, boxes = [], []
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        with Image.open(path) as picture:
            width, height = picture.size
        images.append(
            {"id": number, "file_name": path.relative_to(folder).as_posix(), "width": width, "height": height}
        )
        for copy in range(number % 3 + 1):
            left, top = width * (0.05 + 0.3 * copy), height * (0.1 + 0.07 * number)
            boxes.append((number, (3, 1)[number % 2], [left, top, width * 0.2, height * 0.15], 0))
        if number % 4 == 0:  # a crowd of dogs, a tiny dog, and one outside of its image
            boxes.append((number, 7, [0, 0, width / 2, height / 2], 1))
        if number % 4 == 1:
            boxes.append((number, 7, [width / 2, height / 2, width * 0.01, height * 0.01], 0))
        if number == 2:
            boxes.append((number, 7, [width * 0.5, height * 0.4, width, height * 0.3], 0))
    annotations = [
        {"id": n, "image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}
        for n, (image, category, box, crowd) in enumerate(boxes)
    ]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def generator_of(folder, document, path, task):
    path.write_text(json.dumps(document), encoding="utf-8")
    summary = Summary()
    return prepare_generator(folder, path, Options(1, max_side=128, tasks=(task,)), summary), summary


@pytest.fixture(scope="module")
def annotations(folder):
    return described(folder)


def boxes_of(document, record):
    """(category, left, top, right, bottom as shares, crowd) of the record's photograph, clipped to it."""
    (image,) = (one for one in document["images"] if one["file_name"] == record["sources"][0])
    names = {one["id"]: one["name"] for one in document["categories"]}
    for one in document["annotations"]:
        if one["image_id"] == image["id"]:
            x, y, w, h = one["bbox"]
            right, bottom = min((x + w) / image["width"], 1), min((y + h) / image["height"], 1)
            yield names[one["category_id"]], x / image["width"], y / image["height"], right, bottom, one["iscrowd"]


def test_answers_agree_with_the_annotation_file(folder, annotations, tmp_path):
    seen = set()
    for task in ("detect", "count"):
        generator, _ = generator_of(folder, annotations, tmp_path / "instances.json", task)
        for index in range(60):
            record = generator.make(index).record
            if not record["variant"].startswith(("category", "pair")):
                continue
            seen.add(record["variant"])
            boxes = list(boxes_of(annotations, record))
            text = " ".join(part.get("text", "") for part in record["messages"][0]["content"])
            asked = [name for name in ("cat", "cup", "dog") if re.search(rf"\b{name}\b", text)]
            named = [box for box in boxes if box[0] in asked]
            assert not any(crowd for *_, crowd in named)
            assert all(min(box[3] - box[1], box[4] - box[2]) > 0.02 for box in named)
            if record["variant"] == "category_presence":
                assert record["answer"] is bool(named)
            elif record["variant"] == "category_location":
                ((_, left, top, right, bottom, _),) = named
                grid = record["construction"]["grid"]
                cell = [int((top + bottom) / 2 * grid) + 1, int((left + right) / 2 * grid) + 1]
                assert record["answer"] == cell
                assert record["messages"][1]["content"] == "Row {}, column {}".format(*cell)
            else:
                assert record["answer"] == len(named) == int(record["messages"][1]["content"])
    assert {"category_presence", "category_location", "category_count"} <= seen


def test_what_cannot_be_used_is_counted(folder, annotations, tmp_path):
    document = json.loads(json.dumps(annotations))
    document["images"].append({"id": 99, "file_name": "elsewhere.png", "width": 100, "height": 100})
    document["annotations"].append({"image_id": 98, "category_id": 1, "bbox": [0, 0, 9, 9]})
    document["annotations"].append({"image_id": 0, "category_id": 1, "bbox": [5, 5, 0, 9]})
    _, summary = generator_of(folder, document, tmp_path / "instances.json", "count")
    assert summary.annotated == len(annotations["images"])
    assert summary.annotation_problems == {
        "images without a usable file": 1,
        "boxes of images that are not listed": 1,
        "boxes that are empty or outside of their image": 1,
        "boxes cut to their image": 1,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("annotations"), "no list 'annotations'"),
        (lambda d: d["annotations"][0].pop("bbox"), r"annotations\[0\] needs 'bbox'"),
        (lambda d: d["annotations"][1].update(bbox=[1, 2, 3]), r"annotations\[1\]: bbox"),
        (lambda d: d["annotations"][0].update(category_id=55), "no category has the id 55"),
        (lambda d: d["annotations"][0].update(bbox=[0, 0, 10**400, 5.5]), r"annotations\[0\]: bbox"),
        (lambda d: d["images"][2].update(id=1), "the id 1 is another image's"),
        (lambda d: d["images"].append({**d["images"][0], "id": 99}), "two images have the file_name"),
        (lambda d: d["categories"][0].update(name="\ud800"), r"categories\[0\]: the name .* half of a surrogate"),
        (lambda d: d["categories"][0].update(name="cup"), "two categories have the name 'cup'"),
        (lambda d: [one.update(file_name="x" + one["file_name"]) for one in d["images"]], "none of them usable"),
    ],
)
def test_broken_annotations_say_where(folder, annotations, tmp_path, change, message):
    document = json.loads(json.dumps(annotations))
    change(document)
    with pytest.raises(DataError, match=message):
        generator_of(folder, document, tmp_path / "instances.json", "count")


@pytest.mark.parametrize(("content", "message"), [("[1, 2]", "holds a list"), ("{", "not JSON")])
def test_other_files_are_refused(folder, tmp_path, content, message):
    (tmp_path / "instances.json").write_text(content)
    with pytest.raises(DataError, match=message):
        prepare_generator(folder, tmp_path / "instances.json", Options(1), Summary())
