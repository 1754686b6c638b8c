"""tools/make_visual_tasks.py as a whole: its output, what it does not depend on, and how it refuses."""

import json
import os
import re
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import chisquare

from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.corpus.prepare import PrepareOptions, prepare
from megatron_apriel.data.visual_tasks import summary as summary_module
from megatron_apriel.data.visual_tasks.difficulty import Range
from megatron_apriel.data.visual_tasks.generate import generate, prepare_generator
from megatron_apriel.data.visual_tasks.options import Options
from megatron_apriel.data.visual_tasks.raw_images import image_files
from megatron_apriel.data.visual_tasks.sample import LETTERS
from megatron_apriel.data.visual_tasks.summary import Summary
from megatron_apriel.errors import ConfigError, DataError, OutputError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.scripts import load_script

MAX_SIDE = 192
LETTERED = ("patch", "turn", "retrieval", "different")
"""Variants whose answer is one of several letters."""


@pytest.fixture(scope="module")
def tool():
    return load_script("tools/make_visual_tasks.py")


def run(tool, destination, images, *more):
    return tool.main([str(destination), "--images", str(images), "--max-side", str(MAX_SIDE), *map(str, more)])


def records_of(directory):
    return [json.loads(line) for line in (directory / "records.jsonl").read_text(encoding="utf-8").splitlines()]


def files_of(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def pictures_of(record):
    return [part["image"] for part in record["messages"][0]["content"] if part["type"] == "image"]


@pytest.fixture(scope="module")
def made(tool, folder, tmp_path_factory):
    directory = tmp_path_factory.mktemp("made") / "visual"
    assert run(tool, directory, folder, "--samples", 64, "--seed", 5, "--workers", 1) == 0
    return directory


def test_records_hold_a_question_its_answer_and_where_they_come_from(made, folder):
    records = records_of(made)
    assert len(records) == 64
    assert set(Counter(record["task"] for record in records)) == {"reconstruct", "match", "detect", "count"}
    for record in records:
        user, assistant = record["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert assistant["content"].strip()
        assert {part["type"] for part in user["content"]} == {"text", "image"}
        assert {"task", "variant", "difficulty", "sources", "answer", "seed"} <= set(record)
        assert record["sources"]
        assert all((folder / name).is_file() for name in record["sources"])
        assert 0 <= record["difficulty"] <= 1
    assert len({record["difficulty"] for record in records}) > 40  # a range is drawn from


def test_no_picture_is_longer_than_asked_for_and_none_is_left_over(made):
    named = [name for record in records_of(made) for name in pictures_of(record)]
    assert sorted(named) == sorted(name for name in files_of(made) if name.startswith("images/"))
    for name in named:
        with Image.open(made / name) as picture:
            assert (picture.format, picture.mode) == ("JPEG", "RGB")
            assert max(picture.size) <= MAX_SIDE


def test_candidates_cannot_be_told_by_how_they_were_saved(made):
    for record in records_of(made):
        headers = []
        for name in pictures_of(record):
            with Image.open(made / name) as picture:
                headers.append((picture.quantization, sorted(picture.info)))
        assert all(one == headers[0] for one in headers)


def test_neither_workers_nor_the_number_of_samples_changes_a_sample(tool, folder, made, tmp_path):
    run(tool, tmp_path / "fewer", folder, "--samples", 21, "--seed", 5, "--workers", 3)
    assert records_of(tmp_path / "fewer") == records_of(made)[:21]
    many, few = files_of(made), files_of(tmp_path / "fewer")
    for name in few:
        if name.startswith("images/"):
            assert few[name] == many[name]


def test_another_seed_gives_other_samples(tool, folder, made, tmp_path):
    run(tool, tmp_path / "other", folder, "--samples", 8, "--seed", 6, "--workers", 1)
    for one, other in zip(records_of(tmp_path / "other"), records_of(made), strict=False):
        assert one["difficulty"] != other["difficulty"]
        assert one["messages"] != other["messages"]


def test_every_option_is_right_equally_often(folder):
    options = Options(1, max_side=128, tasks=("reconstruct", "match"), difficulty=Range.parse("0.5"))
    generator = prepare_generator(folder, None, options, Summary())
    lettered = tuple(tuple(one for one in group if one.name in LETTERED) for group in generator.menu.variants)
    generator = replace(generator, menu=replace(generator.menu, variants=lettered))
    answers = {name: Counter() for name in LETTERED}
    for index in range(160):
        record = generator.make(index).record
        counts, how = answers[record["variant"]], record["construction"]
        counts.update(dict.fromkeys(LETTERS[: how.get("candidates") or how["options"]], 0))  # those never right, too
        counts[record["answer"]] += 1
    for counts in answers.values():
        assert sum(counts.values()) > 25 and all(counts.values()), counts
        assert chisquare(list(counts.values())).pvalue > 0.001, counts


def test_prepare_data_reads_what_was_made(made, tmp_path):
    full = Architecture.from_preset("pixtral-12b")
    small = replace(
        full,
        decoder=replace(full.decoder, num_layers=1, hidden_size=64, ffn_hidden_size=64, vocab_size=2048),
        tower=replace(full.tower, num_layers=1, image_size=128),
    )
    model = write_hf_checkpoint(tmp_path / "model", small, processor=True)
    options = PrepareOptions(image_root=made, workers=1, max_bad=0.0, strict=True)
    summary = prepare(tmp_path / "corpus", [made], model, options)
    assert (summary.documents, summary.problems.count) == (64, 0)
    assert summary.images == sum(len(pictures_of(record)) for record in records_of(made))
    corpus = Corpus.open(tmp_path / "corpus")
    assert len(corpus) == 64
    assert all(corpus.responses(number).any() for number in range(64))


def damaged_folder(folder, path, keep):
    """``keep`` good photographs, and files that are damaged in different ways."""
    path.mkdir()
    good = sorted(folder.rglob("*.png"))
    for source in good[:keep]:
        shutil.copy(source, path / source.name)
    whole = good[0].read_bytes()
    (path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (path / "empty.jpg").write_bytes(b"")
    (path / "text.png").write_text("not an image")
    (path / "note.txt").write_text("no image either")
    Image.new("RGB", (20, 20)).save(path / "tiny.png")
    return path


def test_damaged_images_are_passed_over_counted_and_named(tool, folder, tmp_path, capsys):
    images = damaged_folder(folder, tmp_path / "photographs", 9)
    assert run(tool, tmp_path / "out", images, "--samples", 24, "--workers", 2) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(manifest["images"]["first_unusable"]) == {"empty.jpg", "text.png", "tiny.png", "truncated.png"}
    used = {name for record in records_of(tmp_path / "out") for name in record["sources"]}
    assert not used & {"empty.jpg", "text.png", "tiny.png", "truncated.png"}
    assert "truncated.png" in capsys.readouterr().err


def test_where_all_unusable_images_are_listed_is_said_only_of_what_lists_them(
    tool, folder, tmp_path, capsys, monkeypatch
):
    images = damaged_folder(folder, tmp_path / "photographs", 9)
    for number in range(3):
        (images / f"empty{number}.jpg").write_bytes(b"")
    options = (images, "--samples", 2, "--workers", 1, "--tasks", "count")
    assert run(tool, tmp_path / "out", *options, "--dry-run") == 0
    printed = capsys.readouterr().err
    assert printed.count("unusable image: ") == 5 and "... and 2 more\n" in printed and "manifest" not in printed
    assert run(tool, tmp_path / "out", *options) == 0
    assert "... and 2 more, listed in manifest.json\n" in capsys.readouterr().err
    monkeypatch.setattr(summary_module, "KEPT", 6)
    assert run(tool, tmp_path / "out", *options, "--overwrite") == 0
    assert "... and 2 more, the first 6 of all listed in manifest.json\n" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert len(manifest["images"]["first_unusable"]) == 6 and manifest["images"]["unusable"] == 7


def test_a_name_that_is_not_utf8_is_passed_over(tool, folder, tmp_path):
    shutil.copytree(folder, images := tmp_path / "photographs")
    name = os.fsdecode(b"\xff.png")
    next(images.glob("*.png")).rename(images / name)
    assert run(tool, tmp_path / "out", images, "--samples", 8, "--workers", 1) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "not UTF-8" in manifest["images"]["first_unusable"][name]


def test_orientation_transparency_and_grey_are_settled(folder, tmp_path):
    images = tmp_path / "kinds"
    images.mkdir()
    picture = Image.open(next(iter(sorted(folder.rglob("astronaut.png"))))).resize((120, 90))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(images / "a_turned.png", exif=exif)
    picture.convert("L").save(images / "b_grey.png")
    clear = picture.convert("RGBA")
    clear.putalpha(0)
    clear.save(images / "c_clear.png")
    summary = Summary()
    generator = prepare_generator(images, None, Options(1, max_side=128, tasks=("count",)), summary)
    assert generator.images.names == ["a_turned.png", "b_grey.png", "c_clear.png"]
    assert generator.images.load(0).size == (96, 128)
    assert np.ptp(np.asarray(generator.images.load(1)), axis=2).max() == 0
    assert np.asarray(generator.images.load(2)).min() == 255


def test_too_few_images_say_how_many_are_needed(tool, folder, tmp_path):
    images = damaged_folder(folder, tmp_path / "photographs", 2)
    with pytest.raises(DataError, match=re.escape("too few")) as raised:
        run(tool, tmp_path / "out", images, "--samples", 4)
    assert "retrieval" in str(raised.value)
    assert "--tasks" in raised.value.fix
    assert not (tmp_path / "out").exists()


def test_images_without_content_are_refused_with_the_reasons(tool, tmp_path):
    (tmp_path / "grey").mkdir()
    for number in range(7):
        Image.new("RGB", (100, 100), (number, 128, 128)).save(tmp_path / "grey" / f"{number}.png")
    with pytest.raises(DataError, match="uniform") as raised:
        run(tool, tmp_path / "out", tmp_path / "grey", "--samples", 4, "--tasks", "reconstruct", "--workers", 1)
    assert "--tasks" in raised.value.fix
    assert list(tmp_path.iterdir()) == [tmp_path / "grey"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--tasks", "reconstruct,paint"], ConfigError, "'paint' is unknown"),
        (["--tasks", ""], ConfigError, "not a choice"),
        (["--difficulty", "tricky"], ConfigError, "'tricky' is neither"),
        (["--max-side", "10"], ConfigError, "--max-side 10"),
        (["--seed", "-1"], ConfigError, "--seed -1"),
        (["--workers", "0"], SystemExit, "2"),
        (["--samples", "0"], SystemExit, "2"),
        (["--weights", "1,x"], SystemExit, "2"),
        (["--annotations", "absent.json"], DataError, "absent.json"),
    ],
)
def test_wrong_arguments_are_refused_and_nothing_is_written(tool, folder, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        tool.main([str(tmp_path / "out"), "--images", str(folder), "--samples", "4", *arguments])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_absent_or_empty_is_named(tool, tmp_path):
    with pytest.raises(DataError, match="absent is not there"):
        run(tool, tmp_path / "out", tmp_path / "absent", "--samples", 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        run(tool, tmp_path / "out", tmp_path / "empty", "--samples", 1)


def test_an_existing_destination_is_kept_unless_told(tool, folder, tmp_path):
    run(tool, tmp_path / "out", folder, "--samples", 2, "--workers", 1)
    before = files_of(tmp_path / "out")
    with pytest.raises(OutputError, match="exists"):
        run(tool, tmp_path / "out", folder, "--samples", 3)
    assert files_of(tmp_path / "out") == before
    run(tool, tmp_path / "out", folder, "--samples", 3, "--overwrite", "--workers", 1)
    assert len(records_of(tmp_path / "out")) == 3


def test_a_folder_of_somebody_is_not_overwritten(tool, folder, tmp_path):
    """Many things have a manifest.json: web applications, data sets of speech."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{}")
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    before = files_of(tmp_path / "out")
    with pytest.raises(OutputError, match=r"has no records\.jsonl"):
        run(tool, tmp_path / "out", folder, "--samples", 2, "--overwrite")
    assert files_of(tmp_path / "out") == before


def test_linked_folders_are_searched_once(folder, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "linked").symlink_to(folder)
    (tmp_path / "images" / "again").symlink_to(folder)
    (tmp_path / "images" / "back").symlink_to(tmp_path / "images")
    names, others = image_files(tmp_path / "images")
    assert names == [f"again/{name}" for name in image_files(folder)[0]] and others == 0


def test_a_dry_run_writes_nothing(tool, folder, tmp_path, capsys):
    assert run(tool, tmp_path / "out", folder, "--samples", 1000, "--dry-run", "--workers", 1) == 0
    assert not list(tmp_path.iterdir())
    assert "was not written" in capsys.readouterr().out


def test_the_destination_may_not_lie_among_the_images(folder):
    with pytest.raises(OutputError, match="lies inside"):
        generate(folder / "out", folder, Options(samples=1))


def test_what_was_checked_is_said(tool, folder, tmp_path, capsys):
    """Questions about annotations are compared with annotations: no pixel was asked."""
    assert tool.main([str(tmp_path / "drawn"), "--images", str(folder), "--samples", "8", "--tasks", "count"]) == 0
    assert "8 answers were found again in the finished pictures" in capsys.readouterr().out
    with Image.open(folder / "astronaut.png") as picture:
        width, height = picture.size
    boxes = [{"image_id": 1, "category_id": 1, "bbox": [20 + 90 * number, 50, 80, 80]} for number in range(3)]
    document = {
        "images": [{"id": 1, "file_name": "astronaut.png", "width": width, "height": height}],
        "annotations": boxes,
        "categories": [{"id": 1, "name": "patch"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(document))
    arguments = ["--annotations", str(tmp_path / "boxes.json"), "--samples", "12", "--tasks", "count"]
    assert tool.main([str(tmp_path / "marked"), "--images", str(folder), *arguments]) == 0
    said = " ".join(capsys.readouterr().out.split())
    records = [json.loads(line) for line in (tmp_path / "marked" / "records.jsonl").read_text().splitlines()]
    marked = sum(record["variant"] == "category_count" for record in records)
    assert 0 < marked < 12
    assert f"{12 - marked} answers were found again in the finished pictures, {marked} were compared with the" in said
