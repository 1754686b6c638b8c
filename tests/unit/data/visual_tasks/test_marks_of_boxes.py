"""Marks of boxes, images and categories in the spellings of published sets and tools, and forms that are read alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_apriel.data.visual_tasks.coco import Annotations, read_annotations
from megatron_apriel.data.visual_tasks.coco_marks import is_region, is_unmarked, marks_of
from megatron_apriel.errors import DataError

NAMES = ("person", "dog", "cat")


def document(**more: Any) -> dict[str, Any]:
    """Two images of 100 x 80 pixels, in each of which is a person; in the second is a dog as well."""
    boxes = [(0, 0, 5), (1, 0, 5), (1, 1, 50)]
    return {
        "images": [{"id": number, "file_name": f"{number}.jpg", "width": 100, "height": 80} for number in (0, 1)],
        "annotations": [
            {"image_id": image, "category_id": category, "bbox": [left, 10, 30, 30]} for image, category, left in boxes
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(NAMES)],
        **more,
    }


def read(tmp_path: Path, whole: dict[str, Any], files: tuple[str, ...] = ("0.jpg", "1.jpg")) -> Annotations:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(whole))
    numbers = {name: number for number, name in enumerate(files)}
    return read_annotations(path, numbers, dict.fromkeys(numbers.values(), (100, 80)))


def countable(found: Annotations) -> set[tuple[int, str]]:
    groups = found.groups
    pairs = zip(groups.image.tolist(), groups.category.tolist(), groups.countable.tolist(), strict=True)
    return {(image, found.categories[category]) for image, category, known in pairs if known}


ALL = {(0, "person"), (1, "person"), (1, "dog")}


def test_nothing_is_marked_here(tmp_path):
    found = read(tmp_path, document())
    assert countable(found) == ALL and found.without(1).tolist() == [0] and not found.problems


MARKED: tuple[dict[str, Any], ...] = (
    {"attributes": [{"name": "difficult", "value": True}]}, {"attributes": ["ignore"]},
    {"attributes": '{"difficult": 1}'}, {"extra": {"attributes": {"ignore": 1}}}, {"tags": [{"name": "ignore"}]},
    {"tags": ["mistake"]}, {"attributes": {"outside": True}}, {"unsure": 1}, {"dont_care": True}, {"deleted": True},
    {"visible": False}, {"visibility": 0.0}, {"status": "rejected"}, {"review_status": "Rejected"}, {"source": "auto"},
    {"origin": "prediction"}, {"predicted": True}, {"auto": True}, {"generated": True}, {"conf": 0.4},
    {"certainty": "0.4"}, {"score": "0.5"}, {"legibility": "illegible"}, {"legible": False}, {"transcription": "###"},
    {"is_hard": 1}, {"reflection": True}, {"drawing": 1}, {"group": True}, {"crowded": True}, {"count": 3},
    {"num_instances": 2}, {"type": "group"}, {"label_type": "ignore_region"}, {"weight": 0}, {"approved": False},
    {"quality": "bad"}, {"mirror": "true"}, {"manual_annotation": False},
)  # fmt: skip
PLAIN: tuple[dict[str, Any], ...] = (
    {"group": 7}, {"group": 0}, {"group_id": None}, {"region": 3}, {"count": 1}, {"score": 1.0}, {"conf": 1},
    {"source": "manual"}, {"status": "completed"}, {"attributes": {"occluded": True, "truncated": 1, "difficult": 0}},
    {"synonyms": ["poster", "crowd"]}, {"visibility": 0.7}, {"text": "Exit"}, {"type": "rectangle"}, {"weight": 1},
    {"attributes": [{"name": "difficult", "value": False}]}, {"keypoints": [0, 0, 0]}, {"attributes": "{broken"},
)  # fmt: skip


@pytest.mark.parametrize("mark", MARKED, ids=json.dumps)
def test_a_marked_box_is_of_no_single_object(tmp_path, mark):
    whole = document()
    whole["annotations"][0] |= mark
    found = read(tmp_path, whole)
    assert (0, "person") not in countable(found) and (1, "dog") in countable(found)
    assert 0 not in found.without(0)


@pytest.mark.parametrize("mark", PLAIN, ids=json.dumps)
def test_other_fields_are_no_marks(mark):
    assert not marks_of({"bbox": [1, 2, 3, 4], **mark})


@pytest.mark.parametrize(
    "mark",
    [{"annotated": False}, {"is_labeled": 0}, {"complete": "no"}, {"status": "NotStarted"}, {"status": "in progress"},
     {"partially_annotated": True}, {"deleted": True}, {"skipped": 1}, {"tags": ["unlabeled"]}, {"dontcare": True},
     {"attributes": {"annotated": False}}, {"extra": {"exhaustive": False}}, {"is_valid": False}, {"verified": 0},
     {"invalid": 1}, {"tags": ["discard"]}],
    ids=json.dumps,
)  # fmt: skip
def test_in_an_image_that_is_not_done_nothing_is_counted_or_denied(tmp_path, mark):
    whole = document()
    whole["images"][0] |= mark
    found = read(tmp_path, whole)
    assert countable(found) == ALL - {(0, "person")} and found.without(1).tolist() == []


@pytest.mark.parametrize(
    "mark",
    [
        {"annotated": True},
        {"status": "completed"},
        {"deleted": False},
        {"annotated": None},
        {"tags": ["day"]},
        {"valid": 1},
    ],
)
def test_other_images_are_done(mark):
    assert not is_unmarked({"file_name": "a.jpg", **mark})


@pytest.mark.parametrize("name", ["negative_category_ids", "neg_categories", "verified_category_ids"])
def test_lists_of_federated_sets_have_several_names(tmp_path, name):
    whole = document()
    whole["images"][0][name] = []
    found = read(tmp_path, whole)
    assert found.absent is not None and found.without(1).tolist() == []


def test_a_list_of_what_is_not_exhaustive_has_several_names(tmp_path):
    for name in ("non_exhaustive_category_ids", "not_exhaustive_categories"):
        whole = document()
        whole["images"][0][name] = [0]
        assert countable(read(tmp_path, whole)) == ALL - {(0, "person")}


def test_lists_of_films_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"videos\[0\] has neg_category_ids: it says of a whole film"):
        read(tmp_path, document(videos=[{"id": 1, "neg_category_ids": []}]))


@pytest.mark.parametrize("more", [{"supercategory": "person"}, {"parent": "person"}, {"parent_id": 0}])
def test_a_kind_of_another_category_says_nothing_certain_of_that_one(tmp_path, more):
    """A dog is a kind of person here: with one in the picture, persons are not counted, and where only a person is
    marked, that a dog is there is not denied."""
    whole = document()
    whole["categories"][1] |= more
    found = read(tmp_path, whole)
    assert countable(found) == {(0, "person")}
    assert found.without(1).tolist() == [] and found.without(2).tolist() == [0, 1]


@pytest.mark.parametrize("names", [("Person", "person"), ("person", "persons"), ("person", "people"), ("man", "Men")])
def test_two_spellings_of_a_category_are_not_two(tmp_path, names):
    whole = document(categories=[{"id": number, "name": name} for number, name in enumerate((*names, "cat"))])
    found = read(tmp_path, whole)
    assert countable(found) == {(0, names[0])} and found.without(1).tolist() == []


def test_a_root_of_the_same_name_is_left_out(tmp_path):
    """Roboflow's form: the first category is the root of the tree, and may be called like one of the others."""
    root = {"id": 9, "name": "person", "supercategory": "none"}
    kinds = [{**one, "supercategory": "person"} for one in document()["categories"]]
    found = read(tmp_path, document(categories=[root, *kinds]))
    assert found.categories == NAMES and countable(found) == ALL
    other = read(tmp_path, document(categories=[{**root, "name": "animals"}, *document()["categories"]]))
    assert countable(other) == ALL


@pytest.mark.parametrize("more", [{"isthing": 0}, {"isthing": False}, {"ignore": 1}, {"ignoreInEval": True}])
def test_boxes_of_stuff_are_not_counted(tmp_path, more):
    whole = document()
    whole["categories"][0] |= more
    assert countable(read(tmp_path, whole)) == {(1, "dog")}
    whole["categories"][0] |= {"isthing": 1, "ignore": 0, "ignoreInEval": False, "synonyms": ["crowd"], "count": 9}
    assert countable(read(tmp_path, whole)) == ALL


def test_names_of_categories_that_are_places():
    for name in ("unknown", "void", "Group of people", "person-group-far-away", "ignore regions", "person?", "crowd"):
        assert is_region(name)
    for name in ("person", "people", "grouper", "other", "misc", "unicycle"):
        assert not is_region(name)


def test_numbers_are_read_as_tables_and_texts_write_them(tmp_path):
    whole = document()
    for number, entry in enumerate(whole["annotations"]):
        entry["image_id"] = (str, float)[number % 2](entry["image_id"])
        entry["category_id"] = (float, str)[number % 2](entry["category_id"])
    for entry in (*whole["images"], *whole["categories"]):
        entry["id"] = str(entry["id"])
    whole["images"][0]["width"] = 100.0
    found = read(tmp_path, whole)
    assert countable(found) == ALL and not found.problems
    whole["images"][0]["width"] = 100.5
    with pytest.raises(DataError, match=r"images\[0\] needs 'width' \(int\); it has 100.5"):
        read(tmp_path, whole)


@pytest.mark.parametrize("folder", ["images/", "images\\", "./", "/data/x/", "../../up/", "https://x.org/a/"])
def test_an_image_is_found_without_the_folder_that_it_was_in(tmp_path, folder):
    whole = document()
    for entry in whole["images"]:
        entry["file_name"] = folder + entry["file_name"]
    assert countable(read(tmp_path, whole)) == ALL
    for entry in whole["images"]:
        entry["file_name"] = f"{folder}0.jpg" if entry["id"] else f"{folder}deeper/0.jpg"
    with pytest.raises(DataError, match="two images have the file_name"):
        read(tmp_path, whole)


@pytest.mark.parametrize("more", [{"bbox_format": "xyxy"}, {"boxFormat": "yolo"}, {"normalized": True}])
def test_boxes_of_another_form_are_refused(tmp_path, more):
    whole = document()
    whole["annotations"][1] |= more
    with pytest.raises(DataError, match=rf"annotations\[1\]: {next(iter(more))} .* is another form"):
        read(tmp_path, whole)
    whole["annotations"][1] |= dict.fromkeys(more, None) | {"bbox_format": "coco", "normalized": False}
    assert countable(read(tmp_path, whole)) == ALL


@pytest.mark.parametrize(
    "said", [{"info": {"bbox_format": "xyxy"}}, {"bbox_mode": "XYXY_ABS"}, {"info": {"normalized": True}}], ids=str
)
def test_a_form_that_the_whole_file_says_is_followed(tmp_path: Path, said: dict[str, Any]) -> None:
    assert len(read(tmp_path, document(info={"bbox_format": "xywh"}, licenses=[], bbox_mode=1)).boxes) == 3
    with pytest.raises(DataError, match="is another form than"):
        read(tmp_path, document(**said))


def test_an_attribute_is_called_by_whatever_key() -> None:
    assert marks_of({"attributes": [{"spec": "crowd", "value": True}]}) == {"crowd"}
    assert not marks_of({"attributes": [{"spec": "crowd", "value": False}, {"a": "crowd", "b": "ignore"}]})
