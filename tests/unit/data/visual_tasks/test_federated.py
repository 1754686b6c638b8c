"""Annotations in which not everything was looked for, and boxes that are of no single object."""

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_apriel.data.visual_tasks.annotated import askable_categories, available
from megatron_apriel.data.visual_tasks.coco import Annotations, read_annotations
from megatron_apriel.errors import DataError

NAMES = {1: "cat", 2: "cup", 3: "dog"}


def read(path: Path, images: list[dict], boxes: list[dict], names: dict[int, str] = NAMES) -> Annotations:
    """Annotations of images of 100 x 80 pixels; every box is of 30 x 30 unless it says otherwise."""
    document = {
        "images": [{"width": 100, "height": 80, **image} for image in images],
        "annotations": [{"bbox": [10, 10, 30, 30], **box} for box in boxes],
        "categories": [{"id": number, "name": name} for number, name in names.items()],
    }
    path.write_text(json.dumps(document))
    files = {"train/0.jpg": 0, "train/1.jpg": 1, "train/2.jpg": 2, "3.jpg": 3}
    return read_annotations(path, files, dict.fromkeys(files.values(), (100, 80)))


def image(number: int, **more: object) -> dict:
    return {"id": number, "file_name": f"train/{number}.jpg", **more}


def box(number: int, category: int, **more: object) -> dict:
    return {"image_id": number, "category_id": category, **more}


def countable(annotations: Annotations) -> dict[tuple[int, str], bool]:
    groups = annotations.groups
    names = [annotations.categories[category] for category in groups.category]
    return dict(zip(zip(groups.image.tolist(), names, strict=True), groups.countable.tolist(), strict=True))


def test_only_what_was_looked_for_is_absent(tmp_path):
    """LVIS: no cup is in image 1, a dog may be; of the cats in image 0 not all have a box."""
    images = [
        image(0, neg_category_ids=[], not_exhaustive_category_ids=[1]),
        image(1, neg_category_ids=[2, 99], not_exhaustive_category_ids=[]),
        image(2, neg_category_ids=[1, 2], not_exhaustive_category_ids=[]),
    ]
    found = read(tmp_path / "a.json", images, [box(0, 1), box(0, 2), box(1, 1), box(2, 2)])
    assert found.without(0).tolist() == [2]
    assert found.without(1).tolist() == [1]  # image 2 contradicts itself: it has a cup
    assert found.without(2).tolist() == []
    assert countable(found) == {(0, "cat"): False, (0, "cup"): True, (1, "cat"): True, (2, "cup"): True}
    assert askable_categories(found).tolist() == [0, 1]


def test_without_such_lists_all_that_has_no_box_is_absent(tmp_path):
    found = read(tmp_path / "a.json", [image(0), image(1)], [box(0, 1), box(1, 2)])
    assert found.absent is None and found.without(2).tolist() == [0, 1]
    assert found.without(0).tolist() == [1]


@pytest.mark.parametrize("key", ["neg_category_ids", "not_exhaustive_category_ids", "pos_category_ids"])
def test_one_such_list_makes_a_set_federated(tmp_path, key):
    found = read(tmp_path / "a.json", [image(0, **{key: []}), image(1)], [box(0, 1), box(1, 2)])
    assert not any(len(found.without(category)) for category in range(3))
    assert not available(found)["category_presence"] and available(found)["category_count"]


@pytest.mark.parametrize("key", ["neg_category_ids", "not_exhaustive_category_ids"])
@pytest.mark.parametrize("given", ["cat", [1.5], [True], {"1": 1}])
def test_lists_of_other_things_are_refused(tmp_path, key, given):
    with pytest.raises(DataError, match=rf"images\[0\]: {key} .* is no list of ids of categories"):
        read(tmp_path / "a.json", [image(0, **{key: given})], [box(0, 1)])


@pytest.mark.parametrize(
    "mark",
    [
        {"iscrowd": 1}, {"is_crowd": True}, {"isCrowd": "1"}, {"ignore": 1}, {"isgroupof": 1}, {"is_group_of": True},
        {"IsGroupOf": 1.0}, {"Is Group Of": "true"}, {"gt_ignore": 1}, {"difficult": 1}, {"isfake": 1},
        {"attributes": {"is_crowd": True}}, {"extra": {"ignore": 1}}, {"ignore_flag": "Yes"}, {"tags": ["crowd"]},
        {"flags": {"difficult": 1}}, {"isInside": 1}, {"invalid": 1}, {"score": 0}, {"score": 0.4},
        {"confidence": 0.99}, {"verified": False}, {"annotator_verified": "no"}, {"is_pseudo": True},
    ],
    ids=str,
)  # fmt: skip
def test_a_box_of_no_single_object(tmp_path, mark):
    found = read(tmp_path / "a.json", [image(0), image(1)], [box(0, 1, **mark), box(1, 1)])
    assert countable(found) == {(0, "cat"): False, (1, "cat"): True}


@pytest.mark.parametrize("sure", [{"score": 1.0}, {"confidence": 1}, {"verified": True}, {"score": None}], ids=str)
def test_a_box_that_somebody_verified(tmp_path, sure):
    assert countable(read(tmp_path / "a.json", [image(0)], [box(0, 1, **sure)])) == {(0, "cat"): True}


def test_a_box_that_is_there_twice_is_not_counted(tmp_path):
    boxes = [box(0, 1), box(0, 1), box(1, 1), box(1, 2), box(1, 1, bbox=[50, 10, 30, 30])]
    found = read(tmp_path / "a.json", [image(0), image(1)], boxes)
    assert countable(found) == {(0, "cat"): False, (1, "cat"): True, (1, "cup"): True}
    assert found.problems == {"boxes that are there twice": 1}


def test_boxes_that_nearly_coincide_are_not_counted(tmp_path):
    near, apart = [10.5, 10, 30, 30.5], [25, 10, 30, 30]
    boxes = [box(0, 1), box(0, 1, bbox=near), box(0, 2, bbox=near), box(1, 1), box(1, 1, bbox=apart)]
    found = read(tmp_path / "a.json", [image(0), image(1)], boxes)
    assert countable(found) == {(0, "cat"): False, (0, "cup"): True, (1, "cat"): True}
    assert found.problems == {"boxes that nearly coincide with another": 2}


@pytest.mark.parametrize("form", ["corners", "shares"])
def test_boxes_that_can_only_be_in_another_form_are_refused(tmp_path, form):
    rng = np.random.default_rng(1)
    left, top = rng.uniform(0, 60, 40), rng.uniform(0, 45, 40)
    wide, high = rng.uniform(5, 40, 40), rng.uniform(5, 35, 40)
    sound = np.stack([left, top, wide, high], 1)
    assert len(read(tmp_path / "a.json", [image(0)], [box(0, 1, bbox=list(one)) for one in sound]).boxes) == 40
    other = np.stack([left, top, left + wide, top + high], 1) if form == "corners" else sound / [100, 80, 100, 80]
    with pytest.raises(DataError, match=r"the bbox of all its 40 boxes can only be"):
        read(tmp_path / "a.json", [image(0)], [box(0, 1, bbox=list(one)) for one in other])


@pytest.mark.parametrize("mode", [0, "XYXY_ABS", 4])
def test_boxes_in_another_form_are_refused(tmp_path, mode):
    """Detectron2 says in which form a box is."""
    assert len(read(tmp_path / "a.json", [image(0)], [box(0, 1, bbox_mode=1)]).boxes) == 1
    with pytest.raises(DataError, match=r"annotations\[0\]: bbox_mode .* is another form"):
        read(tmp_path / "b.json", [image(0)], [box(0, 1, bbox_mode=mode)])


@pytest.mark.parametrize("mark", [{"ignore": 1}, {"is_exhaustive": False}, {"attributes": {"ignored": True}}], ids=str)
def test_an_image_whose_objects_have_not_all_a_box(tmp_path, mark):
    found = read(tmp_path / "a.json", [image(0, **mark), image(1, is_exhaustive=True)], [box(0, 1), box(1, 2)])
    assert found.unmarked.tolist() == [True, False]
    assert countable(found) == {(0, "cat"): False, (1, "cup"): True} and found.without(2).tolist() == [1]


def test_lists_in_another_spelling(tmp_path):
    images = [image(0, negCategoryIds=[2], notExhaustiveCategoryIds=[1])]
    found = read(tmp_path / "a.json", images, [box(0, 1)])
    assert found.without(1).tolist() == [0] and not len(found.without(2)) and countable(found) == {(0, "cat"): False}


def test_categories_of_lvis_without_its_lists(tmp_path):
    """A file that lost them says by its categories that it is of a federated set."""
    document = {
        "images": [image(0, width=100, height=80)],
        "annotations": [box(0, 1, bbox=[10, 10, 30, 30])],
        "categories": [{"id": 1, "name": "cat", "frequency": "f", "synset": "cat.n.01"}, {"id": 2, "name": "cup"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    found = read_annotations(tmp_path / "a.json", {"train/0.jpg": 0}, {0: (100, 80)})
    assert found.absent is not None and not len(found.without(1))


@pytest.mark.parametrize("value", [0, False, "0", "", None, 0.0, "false"])
def test_a_mark_that_says_no(tmp_path, value):
    boxes = [box(0, 1, iscrowd=value, ignore=value, attributes={"occluded": True, "is_group_of": value})]
    assert countable(read(tmp_path / "a.json", [image(0)], boxes)) == {(0, "cat"): True}


@pytest.mark.parametrize("value", [-1, "-1", 2, "hard", [1], "perhaps"], ids=str)
def test_a_mark_that_does_not_say_no(tmp_path, value):
    """Open Images has -1 for unknown: such a box is not relied on."""
    found = read(tmp_path / "a.json", [image(0), image(1)], [box(0, 1, iscrowd=value), box(1, 1)])
    assert countable(found) == {(0, "cat"): False, (1, "cat"): True}


def test_open_images(tmp_path):
    """Its images have texts for ids; without lists of what was looked for, nothing is absent."""
    images = [{"id": f"00{number}ab", "file_name": f"train/{number}.jpg"} for number in range(2)]
    boxes = [
        {"image_id": "000ab", "category_id": 1, "isgroupof": 0, "isdepiction": -1},
        {"image_id": "001ab", "category_id": 2, "isgroupof": 0, "isdepiction": 0},
    ]
    found = read(tmp_path / "a.json", images, boxes)
    assert found.images.tolist() == [0, 1] and countable(found) == {(0, "cat"): False, (1, "cup"): True}
    assert not any(len(found.without(category)) for category in range(3))


def test_a_place_to_be_ignored(tmp_path):
    """VisDrone: category 0 need not be listed; nothing is counted or absent there. Else it counts as a crowd."""
    boxes = [box(0, 1), box(0, 0, ignore=1), box(1, 1), box(2, 2, ignore=1)]
    found = read(tmp_path / "a.json", [image(0), image(1), image(2)], boxes)
    assert found.unmarked.tolist() == [True, False, False]
    assert countable(found) == {(0, "cat"): False, (1, "cat"): True, (2, "cup"): False}
    assert found.without(2).tolist() == [1, 2]
    with pytest.raises(DataError, match="no category has the id 0"):
        read(tmp_path / "a.json", [image(0)], [box(0, 0)])


@pytest.mark.parametrize("name", ["ignored regions", "DontCare", "Ignore", "person group"])
def test_places_where_nothing_was_marked(tmp_path, name):
    """Whatever stands in such a place has no box."""
    boxes = [box(0, 1), box(0, 4, bbox=[0, 0, 50, 50]), box(1, 1)]
    found = read(tmp_path / "a.json", [image(0), image(1), image(2)], boxes, {**NAMES, 4: name})
    assert found.unmarked.tolist() == [True, False, False]
    assert found.without(2).tolist() == [1, 2]
    assert countable(found) == {(0, "cat"): False, (0, name): False, (1, "cat"): True}
    assert askable_categories(found).tolist() == [0]


def test_an_image_named_by_its_address(tmp_path):
    address = "http://images.cocodataset.org/{}"
    images = [
        {"id": 5, "coco_url": address.format("train/1.jpg")},
        {"id": 6, "coco_url": address.format("val/3.jpg"), "file_name": None},
    ]
    found = read(tmp_path / "a.json", images, [box(5, 1), box(6, 2)])
    assert sorted(found.images.tolist()) == [1, 3]
    with pytest.raises(DataError, match="needs 'file_name'"):
        read(tmp_path / "a.json", [{"id": 5}], [])
    with pytest.raises(DataError, match="names no file"):
        read(tmp_path / "a.json", [{"id": 5, "coco_url": "http://images.cocodataset.org"}], [])


def test_the_arrays_of_no_boxes(tmp_path):
    found = read(tmp_path / "a.json", [image(0, neg_category_ids=[1])], [])
    assert found.without(0).tolist() == [0] and found.boxes.shape == (0, 4)


@pytest.mark.parametrize("federated", [True, False])
def test_images_without_a_category_are_those_of_the_whole_lists(federated, tmp_path, monkeypatch):
    """Compared with sets made here; what is looked at for a category are its own entries, not those of all."""
    generator = np.random.default_rng(3)
    images, boxes, listed = [], [], {}
    files = {f"{number}.jpg": number for number in range(300)}
    for number in range(300):
        listed[number] = set(generator.choice(40, 4, replace=False).tolist()) if federated else set(range(40))
        more = {"neg_category_ids": sorted(listed[number])} if federated else {}
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 100, "height": 80, **more})
        boxes += [box(number, int(category), bbox=[9, 9, 30, 30]) for category in generator.integers(0, 40, 3)]
    categories = [{"id": number, "name": f"c{number}"} for number in range(40)]
    document = {"images": images, "annotations": boxes, "categories": categories}
    (tmp_path / "a.json").write_text(json.dumps(document))
    found = read_annotations(tmp_path / "a.json", files, dict.fromkeys(files.values(), (100, 80)))
    found.without(0)
    looked_at, unique = [], np.unique
    monkeypatch.setattr(
        np, "unique", lambda values, **options: looked_at.append(len(values)) or unique(values, **options)
    )
    places = {int(raw): place for place, raw in enumerate(found.images)}
    for category in range(40):
        shown = {one["image_id"] for one in boxes if one["category_id"] == category}
        wanted = sorted(places[number] for number in range(300) if category in listed[number] and number not in shown)
        assert found.without(category).tolist() == wanted
    most = max(sum(category in one for one in listed.values()) for category in range(40)) if federated else 0
    assert all(length <= most for length in looked_at)
