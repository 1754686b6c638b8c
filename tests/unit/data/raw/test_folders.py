"""Directories as hubs and tools leave them: splits kept apart, descriptions passed over, nothing lost unsaid."""

import bz2
import gzip
import json
import lzma

import datasets
import pytest
import zstandard

from megatron_apriel.data.raw.files.finding import find_inputs
from megatron_apriel.errors import DataError


def lines(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def write(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data if isinstance(data, bytes) else lines(*data))


def read(path, split="", subset=""):
    return [
        raw.value["text"]
        for given in find_inputs([path], split, subset=subset).readable
        for block in given.blocks()
        for raw in block.records()
    ]


CARD = b"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: parts/*.jsonl
  - split: held_out
    path: ["last.jsonl"]
---
# A data set
"""

SPLITS = {
    "shards of a hub": {"data/train-00000-of-00001.jsonl": ["a"], "data/test-00000-of-00001.jsonl": ["b"]},
    "files": {"train.jsonl": ["a"], "test.jsonl": ["b"]},
    "words inside": {"my_train_v2.jsonl": ["a"], "my-test.v2.jsonl": ["b"]},
    "directories": {"train/1.jsonl": ["a"], "test/1.jsonl": ["b"]},
    "short forms": {"training/x.jsonl": ["a"], "eval/x.jsonl": ["b"]},
    "partitions": {"split=train/x.jsonl": ["a"], "split=test/x.jsonl": ["b"]},
    "small tests": {"train.jsonl": ["a"], "testmini.jsonl": ["b"]},
    "what is held out": {"train.jsonl": ["a"], "my-holdout.jsonl": ["b"]},
    "sets": {"trainset.jsonl": ["a"], "testset.jsonl": ["b"]},
    "humps": {"myTrainData.jsonl": ["a"], "testData.jsonl": ["b"]},
    "one without a name": {"data.jsonl": ["a"], "testing.jsonl": ["b"]},
}
SPLITS_CALLED = {"short forms": ("train", "test"), "one without a name": ("train", "test")}


@pytest.mark.parametrize("name", SPLITS)
def test_splits_are_never_mixed_unasked(name, tmp_path):
    write(tmp_path, SPLITS[name])
    with pytest.raises(DataError, match=r"has the splits (test, train|train, test)(?s:.*)--split"):
        find_inputs([tmp_path])
    assert read(tmp_path, "train") == ["a"] and read(tmp_path, "test") == ["b"]
    assert sorted(read(tmp_path, "test+train")) == sorted(read(tmp_path, "all")) == ["a", "b"]
    passed = find_inputs([tmp_path], "train").passed
    assert len(passed) == 1, "what is left out is said"
    with pytest.raises(DataError, match="and split 'dev' was asked for"):
        find_inputs([tmp_path], "dev")


def test_several_train_splits_of_a_hub(tmp_path):
    names = ("train_sft", "train_gen", "test_sft")
    write(tmp_path, {f"data/{name}-00000-of-00001.jsonl": [name] for name in names})
    with pytest.raises(DataError, match="has the splits test_sft, train_gen, train_sft"):
        find_inputs([tmp_path])
    assert read(tmp_path, "train_sft") == ["train_sft"]


def test_a_split_of_any_name_among_shards(tmp_path):
    write(tmp_path, {f"data/{name}-00000-of-00001.jsonl": [name] for name in ("train", "challenge")})
    assert read(tmp_path, "train") == ["train"] and read(tmp_path, "challenge") == ["challenge"]


def test_a_class_of_characters_in_a_card(tmp_path):
    card = CARD.replace(b"parts/*.jsonl", b"part-[0-1].jsonl").replace(b"last.jsonl", b"part-[!01].jsonl")
    write(tmp_path, {"README.md": card, **{f"part-{number}.jsonl": [str(number)] for number in range(4)}})
    assert read(tmp_path, "train") == ["0", "1"] and read(tmp_path, "held_out") == ["2", "3"]


def test_the_card_of_a_repository_says_the_splits(tmp_path):
    write(tmp_path, {"README.md": CARD, "parts/x.jsonl": ["a"], "last.jsonl": ["b"]})
    with pytest.raises(DataError, match="has the splits held_out, train"):
        find_inputs([tmp_path])
    assert read(tmp_path, "train") == ["a"] and read(tmp_path, "held_out") == ["b"]


@pytest.mark.parametrize("path", ["data/*.jsonl", "[data/x.jsonl]"])
def test_what_a_card_does_not_name_is_no_part_of_the_data_set(path, tmp_path):
    card = f"---\nconfigs:\n- config_name: default\n  data_files: {path}\n---\n"
    write(tmp_path, {"README.md": card.encode(), "data/x.jsonl": ["a"], "raw/y.jsonl": ["b"], "z.jsonl": ["c"]})
    found = find_inputs([tmp_path])
    assert read(tmp_path) == ["a"]
    assert [one.relative_to(tmp_path).as_posix() for one in found.passed] == ["raw/y.jsonl", "z.jsonl", "README.md"]


@pytest.mark.parametrize("card", [b"---\n[\n---\n", b"---\nconfigs: 5\n---\n", b"\xff\xfe", b"no front matter"])
def test_a_card_that_says_nothing(card, tmp_path):
    write(tmp_path, {"README.md": card, "a.jsonl": ["a"]})
    assert read(tmp_path) == ["a"]


LANGUAGES = """---
configs:
- config_name: all
  data_files: "**/*.jsonl"
- config_name: en
  data_files:
  - {split: train, path: en/train.jsonl}
  - {split: test, path: en/test.jsonl}
- config_name: fr
  data_dir: fr
---
"""


def test_one_subset_of_a_repository_is_chosen(tmp_path):
    files = {"en/train.jsonl": ["e"], "en/test.jsonl": ["t"], "fr/train.jsonl": ["f"], "fr/more.jsonl": ["g"]}
    write(tmp_path, {"README.md": LANGUAGES.encode(), **files})
    with pytest.raises(DataError, match=r"has the subsets all, en, fr(?s:.*)--subset all"):
        find_inputs([tmp_path], "train")
    assert read(tmp_path, "train", "en") == ["e"] and read(tmp_path, "test", "en") == ["t"]
    assert read(tmp_path, "train", "fr") == ["g", "f"]
    assert sorted(read(tmp_path, "all", "en+fr")) == sorted(read(tmp_path, "all", "all")) == ["e", "f", "g", "t"]
    with pytest.raises(DataError, match="has the subsets all, en, fr, and subset 'de' was asked for"):
        find_inputs([tmp_path], "train", subset="de")
    (tmp_path / "README.md").write_text(LANGUAGES.replace("config_name: fr", "config_name: fr\n  default: true"))
    assert read(tmp_path, "train") == ["g", "f"]
    (tmp_path / "README.md").unlink()
    with pytest.raises(DataError, match="has no card with subsets, and subset 'fr' was asked for"):
        find_inputs([tmp_path], "train", subset="fr")
    with pytest.raises(DataError, match="no input is a directory with a card"):
        find_inputs([tmp_path / "fr" / "more.jsonl"], subset="fr")


def test_subsets_whose_files_are_not_there_are_no_choice(tmp_path):
    write(tmp_path, {"README.md": LANGUAGES.replace('config_name: all\n  data_files: "**/*.jsonl"\n- ', "").encode()})
    write(tmp_path, {"fr/more.jsonl": ["g"]})
    assert read(tmp_path) == ["g"]


def test_one_split_needs_no_choice(tmp_path):
    write(tmp_path, {"data/test-00000-of-00001.jsonl": ["b"], "latest.jsonl": ["x"]})
    write(tmp_path / "only", {"test.jsonl": ["b"]})
    assert read(tmp_path / "only") == read(tmp_path / "only", "test") == ["b"]


def test_files_that_are_named_are_read_whatever_they_are_called(tmp_path):
    write(tmp_path, {"train.jsonl": ["a"], "test.jsonl": ["b"]})
    assert len(find_inputs([tmp_path / "train.jsonl", tmp_path / "test.jsonl"]).readable) == 2


def test_splits_of_saved_data_sets(tmp_path):
    both = {"train": datasets.Dataset.from_dict({"text": ["a"]}), "test": datasets.Dataset.from_dict({"text": ["b"]})}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "saved")
    assert sorted(read(tmp_path / "saved", "train+test")) == sorted(read(tmp_path / "saved", "all")) == ["a", "b"]
    assert read(tmp_path, "test") == ["b"]
    with pytest.raises(DataError, match="has the splits train, test"):
        find_inputs([tmp_path])


def image_folder(root, **captions):
    for name, caption in captions.items():
        (root / f"{name}.png").write_bytes(b"image of " + name.encode())
        (root / f"{name}.txt").write_text(caption)


def test_images_with_captions_beside_them(tmp_path):
    image_folder(tmp_path, b="Green.", a="Red.")
    (tmp_path / "c.png").write_bytes(b"image")
    (tmp_path / "LICENSE.txt").write_text("free")
    inputs = find_inputs([tmp_path])
    records = [raw for given in inputs.readable for block in given.blocks() for raw in block.records()]
    assert [(raw.value, dict(raw.attachments)) for raw in records[:2]] == [
        ({"text": "Red.", "images": [b"image of a"]}, {"a.png": b"image of a"}),
        ({"text": "Green.", "images": [b"image of b"]}, {"b.png": b"image of b"}),
    ]
    assert "no .json and no .txt among c.png" in records[2].problem and len(records) == 3
    assert inputs.passed == [tmp_path / "LICENSE.txt"]


def test_the_files_of_img2dataset(tmp_path):
    for shard in ("00000", "00001"):
        (tmp_path / shard).mkdir()
        image_folder(tmp_path / shard, x="Red.")
        (tmp_path / shard / "x.json").write_text('{"caption": "Red.", "key": "x"}')
        (tmp_path / f"{shard}.parquet").write_bytes(b"PAR1")
        (tmp_path / f"{shard}_stats.json").write_text('{"count": 1}')
    assert read(tmp_path) == ["Red.", "Red."]
    assert len(find_inputs([tmp_path]).passed) == 4


def test_texts_beside_images_that_records_name_are_no_captions(tmp_path):
    (tmp_path / "images").mkdir()
    image_folder(tmp_path / "images", a="RED DOOR")
    write(tmp_path, {"data.jsonl": ["a"]})
    assert read(tmp_path) == ["a"]
    assert [entry.name for entry in find_inputs([tmp_path]).passed] == ["a.png", "a.txt"]


BOXES = {
    "YOLO": "0 0.5 0.5 0.2 0.2\n3 0.1 0.1 0.05 0.1\n",
    "small numbers": "15 0.5 0.5 0.2 1.5e-05\n",
    "KITTI": "Car 0.00 0 -1.58 587.01 173.33 614.12 200.12 1.65 1.67 3.64 -0.65 1.71 46.70 -1.59\n",
    "DOTA": "imagesource:GoogleEarth\ngsd:0.146\n2244.0 1791.0 2254.0 1795.0 2245.0 1813.0 2238.0 1809.0 ship 1\n",
    "ICDAR": "\ufeff377,117,463,117,465,130,378,130,Genaxis Theatre\n493,115,519,115,519,131,493,131,[06]\n",
    "VisDrone": "684,8,273,116,0,0,0,0\n406,119,265,70,0,0,0,0,\n",
}


@pytest.mark.parametrize("text", BOXES.values(), ids=BOXES)
def test_boxes_beside_images_are_no_captions(tmp_path, text):
    image_folder(tmp_path, a=text, b="4 cats on 2 chairs", c="1, 2, 3, 4, 5: I have seen it all\n12 by 12")
    (given,) = find_inputs([tmp_path]).readable
    problems = [raw.problem for block in given.blocks() for raw in block.records()]
    assert "a.txt holds the boxes of an image" in problems[0] and not problems[1] and not problems[2]


def test_archives_that_energon_excludes(tmp_path):
    write(tmp_path, {"a.tar": b"", "b.tar": b"", "c.tar": b""})
    split = b"exclude:\n- b.tar\nsplit_parts:\n  train: ['{a,b}.tar', a.tar, b.tar, c.tar]\n"
    write(tmp_path, {".nv-meta/split.yaml": split})
    for wanted in ("", "train", "all"):
        assert [given.path.name for given in find_inputs([tmp_path], wanted).readable] == ["a.tar", "c.tar"]
    assert find_inputs([tmp_path]).passed == [tmp_path / "b.tar"]
    write(tmp_path, {".nv-meta/split.yaml": split.replace(b"- b.tar", b"- b.tar/0001")})
    with pytest.raises(DataError, match=r"excludes 'b.tar/0001', a sample of an archive"):
        find_inputs([tmp_path])


def test_energon_says_the_splits_of_its_archives(tmp_path):
    names = [f"shard_{number}.tar" for number in range(12)]
    write(tmp_path, dict.fromkeys(names, b""))
    split = b"split_parts:\n  train: ['shard_{0..9}.tar']\n  val: [shard_10.tar]\n  test:\n  - shard_11.tar\n"
    write(tmp_path, {".nv-meta/split.yaml": split, ".nv-meta/dataset.yaml": b"x: 1\n", "shard_0.tar.idx": b""})
    assert [given.path.name for given in find_inputs([tmp_path], "validation").readable] == ["shard_10.tar"]
    assert len(find_inputs([tmp_path], "train").readable) == 10
    with pytest.raises(DataError, match="has the splits train, validation, test"):
        find_inputs([tmp_path])
    write(tmp_path, {".nv-meta/split.yaml": b"["})
    with pytest.raises(DataError, match=r"split\.yaml cannot be read(?s:.*)archives of one split"):
        find_inputs([tmp_path], "train")


def test_energon_lists_its_archives_in_other_forms(tmp_path):
    """As JSON, and with names in braces; what no split lists is no part of the data set."""
    write(tmp_path, dict.fromkeys(("a.tar", "b.tar", "c.tar", "d.tar"), b""))
    parts = {"train": ["a.tar"], "val": ["{b,c}.tar"]}
    write(tmp_path, {".nv-meta/split.json": json.dumps({"split_parts": parts, "exclude": []}).encode()})
    assert [given.path.name for given in find_inputs([tmp_path], "train").readable] == ["a.tar"]
    assert [given.path.name for given in find_inputs([tmp_path], "validation").readable] == ["b.tar", "c.tar"]
    assert [given.path.name for given in find_inputs([tmp_path], "all").readable] == ["a.tar", "b.tar", "c.tar"]
    with pytest.raises(DataError, match="has the splits train, validation, and"):
        find_inputs([tmp_path])


def test_what_describes_others_is_passed_over_and_named(tmp_path):
    stats = b'{"count": 1}'
    write(
        tmp_path,
        {
            "00000.tar": b"",
            "00000.parquet": b"",
            "00000_stats.json": stats,
            "dataset_infos.json": b'{"default": {"features": {"text": {}}}}',
            "sub/a.jsonl": ["a"],
            "sub/LICENSE": b"x",
            "red.png": b"x",
            "notes.jsonl.lz4": b"x",
        },
    )
    found = find_inputs([tmp_path])
    assert [given.path.name for given in found.readable] == ["00000.tar", "a.jsonl"]
    assert {path.name for path in found.passed} == {
        "00000.parquet", "00000_stats.json", "dataset_infos.json", "LICENSE", "red.png", "notes.jsonl.lz4",
    }  # fmt: skip


PACKED = {".gz": gzip.compress, ".zst": zstandard.compress, ".xz": lzma.compress, ".bz2": bz2.compress, "": bytes}


@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_packed_and_tabular_files_of_a_directory_are_read(kind, ending, tmp_path):
    texts = [f"text {number}" for number in range(200)]
    data = lines(*texts) if kind == "jsonl" else "".join(f"{one}\n" for one in ["text", *texts]).encode()
    half = data.index(b"\n", len(data) // 2) + 1
    packed = PACKED[ending](data[:half]) + PACKED[ending](data[half:])  # two parts, as from `cat a.xz b.xz`
    write(tmp_path, {f"a.{kind}{ending}": packed})
    assert read(tmp_path) == texts
    if ending:
        (tmp_path / f"a.{kind}{ending}").write_bytes(packed[:-5])
        with pytest.raises(DataError, match="cannot be read to its end"):
            read(tmp_path)
        (tmp_path / f"a.{kind}{ending}").write_bytes(b"\0\0\0\0 no such thing" * 10)
        with pytest.raises(DataError, match="cannot be read to its end"):
            read(tmp_path)


def test_padding_between_the_parts_of_an_xz_file(tmp_path):
    write(tmp_path, {"a.jsonl.xz": lzma.compress(lines("a")) + bytes(8) + lzma.compress(lines("b")) + bytes(4)})
    assert read(tmp_path) == ["a", "b"]


ENERGON_FIELDS = {
    "image: jpg\n  caption: txt": "",
    "image: jpg;png\n  caption: txt": "",
    "image: jpg\n  conversation: json": "",
    "image: jpg\n  caption: json[caption]": "caption: json[caption]",
    "image: jpg\n  context: txt\n  answers: json": "context: txt, answers: json",
    "image: depth.png\n  caption: txt": "image: depth.png",
    "image: [jpg, png]\n  caption: txt": "image: ['jpg', 'png']",
}


@pytest.mark.parametrize("fields", ENERGON_FIELDS)
def test_what_energon_says_of_members_is_as_they_are_read_or_refused(fields, tmp_path):
    write(tmp_path, {"a.tar": b"", ".nv-meta/dataset.yaml": f"field_map:\n  {fields}\n".encode()})
    if not ENERGON_FIELDS[fields]:
        assert [given.path.name for given in find_inputs([tmp_path]).readable] == ["a.tar"]
        return
    with pytest.raises(DataError) as caught:
        find_inputs([tmp_path])
    assert f"has the field_map {ENERGON_FIELDS[fields]!r}, which is not followed" in str(caught.value)
    assert len(find_inputs([tmp_path / "a.tar"]).readable) == 1, "named by the user it is read"


def test_code_of_energons_users_is_not_followed(tmp_path):
    write(tmp_path, {"a.tar": b"", ".nv-meta/dataset.yaml": b"sample_loader: sample_loader.py:sample_loader\n"})
    with pytest.raises(DataError, match=r"sample_loader 'sample_loader\.py:sample_loader', which is not followed"):
        find_inputs([tmp_path])


DESCRIPTIONS = {
    "stats.jsonl": b'{"n": 1}\n',
    "languages.json": b'["en", "nl"]', "counts.json": b"[1, 2]", "metadata.csv": b"id,x\n1,2\n",
    "blip_558k_meta.json": b'[{"id": "1", "blip_caption": "A door"}]', "meta/tasks.jsonl": b'{"task_index": 0}\n',
    "attributes/toxic/data.jsonl": b'{"id": "1", "attributes": {}}\n',
}  # fmt: skip


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_what_describes_others_is_known_by_its_name_or_has_no_objects(name, tmp_path):
    write(tmp_path / "a", {name: DESCRIPTIONS[name], "x.jsonl": ["a"]})
    described = {given.path.name: given.is_description() for given in find_inputs([tmp_path / "a"]).readable}
    assert described == {name.rpartition("/")[2]: True, "x.jsonl": False}
    assert not find_inputs([tmp_path / "a" / name]).readable[0].is_description()  # it was asked for


def test_rows_that_indices_choose_are_refused(tmp_path):
    """Early versions of datasets saved all rows, and beside them which of these were meant."""
    datasets.Dataset.from_list([{"text": "a"}, {"text": "b"}]).save_to_disk(tmp_path / "x")
    state = tmp_path / "x" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "_indices_data_files": [{"filename": "i.arrow"}]}))
    with pytest.raises(DataError, match="names a file of indices"):
        read(tmp_path)
    state.write_text(json.dumps({**json.loads(state.read_text()), "_indices_data_files": None}))
    assert read(tmp_path) == ["a", "b"]


def test_captions_of_another_ending(tmp_path):
    write(tmp_path, {"5_dog/a.png": b"x", "5_dog/a.caption": b"A dog."})
    (given,) = find_inputs([tmp_path]).readable
    (raw,) = [raw for block in given.blocks() for raw in block.records()]
    assert given.kind == "image folder" and raw.value["text"] == "A dog." and raw.value["images"] == [b"x"]
