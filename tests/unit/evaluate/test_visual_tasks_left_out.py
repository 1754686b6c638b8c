"""Pictures that some visual tasks cannot be made of: those are left out and named, the others are made and asked."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from megatron_apriel.data.visual_tasks import tasks
from megatron_apriel.data.visual_tasks.generate import generate
from megatron_apriel.data.visual_tasks.options import Options
from megatron_apriel.data.visual_tasks.refusals import Unfit, WrongAnswer
from megatron_apriel.errors import DataError
from megatron_apriel.evaluate.items import read_items
from tests.unit.evaluate.conftest import Answering, run, write_photographs
from tools import compare

MATCHED = {"match point", "match different", "match retrieval"}
RECONSTRUCTED = {"reconstruct patch", "reconstruct shuffle", "reconstruct turn", "reconstruct turned_piece"}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Pictures of one colour: shapes can be drawn on them, but no part of them is like no other."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (80, 80), (number * 50, 0, 0)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Too few pictures for one variant."""
    return write_photographs(tmp_path / "few", 4, seed=1)


def test_what_suits_is_asked_and_what_does_not_is_named(
    tmp_path: Path, few: Path, answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    server, out = answering(lambda body: "A"), tmp_path / "out"
    own = ("--model", server.address, "--pictures", str(few), "--samples", "24")
    said = "visual tasks: without match retrieval, because it needs 6 images, and 4 can be used."
    assert run(out, tmp_path, *own, "--dry-run", benchmarks="visual_tasks") == 0
    assert capsys.readouterr().err.count(said) == 1 and not out.exists()
    assert run(out, tmp_path, *own, benchmarks="visual_tasks") == 0
    printed = capsys.readouterr()
    assert said in printed.err and said in printed.out and len(server.requests) == 48
    for name in ("report.md", "report.html"):
        assert said.rstrip(".") in (out / name).read_text().replace("\\", ""), name
    report = json.loads((out / "report.json").read_text())
    assert said in report["remarks"] and report["rows"][0]["asked"] == 24
    variants = {part["name"][1] for part in report["rows"][0]["parts"] if part["name"][0] == "variant"}
    assert len(variants) > 6 and "match retrieval" not in variants

    # What was made before a kill is not made again, and what was left out is known of it.
    (out / "visual_tasks" / "items.json").unlink()
    assert run(out, tmp_path, *own, benchmarks="visual_tasks") == 0
    assert said in capsys.readouterr().out and len(server.requests) == 48
    taken = tmp_path / "taken"
    assert run(taken, tmp_path, *own[:2], "--items-from", str(out), benchmarks="visual_tasks") == 0
    assert said in capsys.readouterr().out
    assert compare.main([str(out), str(taken)]) == 0
    assert f"{taken}, {said}" in capsys.readouterr().out


def test_variants_that_show_their_fault_on_the_way(tmp_path: Path, plain: Path) -> None:
    options = Options(samples=24, leaves_out=True)
    summary = generate(tmp_path / "one", plain, options)
    assert summary.left_out.keys() == {"detect inset"} | MATCHED | RECONSTRUCTED
    assert (
        "gives a question with one answer: the turned picture is nearly uniform (100)"
        in (summary.left_out["reconstruct turn"])
    )
    records = [json.loads(line) for line in (tmp_path / "one" / "records.jsonl").read_text().splitlines()]
    made = {f"{record['task']} {record['variant']}" for record in records}
    assert made == {"detect presence", "detect location", "count total", "count kind"} == set(summary.made)
    assert len(records) == 24 == sum(summary.made.values())
    assert len(list((tmp_path / "one" / "images").rglob("*.jpg"))) == summary.pictures
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert manifest["left_out"] == summary.left_out and set(manifest["variants"]) == made
    generate(tmp_path / "two", plain, Options(samples=24, workers=2, leaves_out=True))
    assert (tmp_path / "two" / "records.jsonl").read_bytes() == (tmp_path / "one" / "records.jsonl").read_bytes()


def test_a_variant_whose_checks_all_fail_is_left_out_because_of_its_check(
    tmp_path: Path, photographs: Path, answering: Answering, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Nothing is wrong with the pictures, and nothing says so."""
    point = next(variant for variant in tasks.VARIANTS if variant.name == "point")
    wrong = replace(point, make=lambda draw: replace(point.make(draw), answer="none of them"))
    monkeypatch.setattr(tasks, "VARIANTS", tuple(wrong if one is point else one for one in tasks.VARIANTS))
    own = ("--model", answering(lambda body: "A").address, "--pictures", str(photographs), "--samples", "24")
    assert run(tmp_path / "out", tmp_path, *own, benchmarks="visual_tasks") == 0
    said = re.findall(r"visual tasks: without (.*)", capsys.readouterr().out)
    assert len(said) == 1 and "do not suit" not in said[0]
    assert re.match(
        r"match point, because its check fails on every sample that 100 attempts gave, \d+ in all; the first: sample "
        r"\d+ of seed 0 \(match point, .* has the answer 'none of them', but its pictures give .*\.$", said[0]
    )  # fmt: skip
    monkeypatch.setattr(tasks, "VARIANTS", (wrong,))
    monkeypatch.setattr("megatron_apriel.data.visual_tasks.options.Options", partial(Options, tasks=("match",)))
    with pytest.raises(
        DataError, match=r"its check fails on every(?s:.*)Something is wrong with this program"
    ) as error:
        run(tmp_path / "other", tmp_path, *own, benchmarks="visual_tasks")
    assert "Give other --pictures" not in str(error.value)


def test_a_tool_that_is_told_what_to_make_leaves_nothing_out(tmp_path: Path, plain: Path, few: Path) -> None:
    with pytest.raises(Unfit, match="too few"):
        generate(tmp_path / "out", few, Options(samples=24))
    with pytest.raises(Unfit, match=r"none of 100 pictures .* gives a question") as error:
        generate(tmp_path / "out", plain, Options(samples=24, tasks=("reconstruct",), workers=2))
    assert len(error.value.reasons) == 1 and not (tmp_path / "out").exists()
    assert issubclass(WrongAnswer, Unfit)


@pytest.mark.parametrize("side", [40, 80])
def test_where_nothing_suits_other_pictures_are_asked_for(
    tmp_path: Path, plain: Path, answering: Answering, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    for path in plain.iterdir():
        with Image.open(path) as picture:
            picture.resize((side, side)).save(path)
    made_of_parts = partial(Options, tasks=("reconstruct", "match"))
    monkeypatch.setattr("megatron_apriel.data.visual_tasks.options.Options", made_of_parts)
    own = ("--model", answering(lambda body: "A").address, "--pictures", str(plain), "--samples", "40")
    with pytest.raises(DataError, match=r"(can be used|gives a question with one answer)\.(?s:.*)Give other --pictures"
                       ) as caught:  # fmt: skip
        run(tmp_path / "out", tmp_path, *own, benchmarks="visual_tasks")
    assert "--tasks" not in str(caught.value) and "--difficulty" not in str(caught.value)
    assert not (tmp_path / "out" / "visual_tasks" / "made").exists()
    with pytest.raises(DataError):
        read_items(tmp_path / "out" / "visual_tasks")
