"""What stands between a mistake and a training run: checks that notice, answers that rejections cannot move, shares."""

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from skimage.measure import label

from megatron_apriel.data.visual_tasks import generator as module
from megatron_apriel.data.visual_tasks import match, summary
from megatron_apriel.data.visual_tasks.difficulty import Range
from megatron_apriel.data.visual_tasks.generate import generate, prepare_generator
from megatron_apriel.data.visual_tasks.generator import Generator
from megatron_apriel.data.visual_tasks.options import Options
from megatron_apriel.data.visual_tasks.pixels import correlation, encoded
from megatron_apriel.data.visual_tasks.refusals import Ambiguous, WrongAnswer
from megatron_apriel.data.visual_tasks.sample import Draw, Sample
from megatron_apriel.data.visual_tasks.scene import Kind, Scene
from megatron_apriel.data.visual_tasks.tasks import TASKS, VARIANTS, Menu, Variant
from megatron_apriel.data.visual_tasks.views import random_view

TOOL = Path(__file__).parents[4] / "tools" / "make_visual_tasks.py"
CONSTRUCTED = [variant for variant in VARIANTS if not variant.annotated]


def only(images, variant: Variant, difficulty: float = 0.5) -> Generator:
    """A generator of one variant."""
    options = Options(1, seed=5, max_side=images.max_side, difficulty=Range(difficulty, difficulty))
    return Generator(images, None, Menu((variant.task,), (1.0,), ((variant,),)), options)


def spoiled(variant: str, number: int, picture: Image.Image, truth: int) -> Image.Image:
    """A picture of a sample, changed so that another answer (or none) would be right."""
    blank = Image.new("RGB", picture.size, (90, 160, 200))
    if variant in ("patch", "retrieval"):
        return blank if number == 1 + truth else picture  # the right option
    if variant in ("shuffle", "turned_piece"):
        return picture.transpose(Image.Transpose.ROTATE_180)
    if variant == "turn":
        return picture.transpose(Image.Transpose.TRANSPOSE) if number == 1 else picture
    if variant == "different":
        return blank if number == (truth + 1) % 3 else picture  # a copy that was left alone
    if variant in ("point", "inset"):
        return blank if number == 1 else picture  # the other view; the patch that is looked for
    return ImageOps.invert(picture)  # the scene: its objects are there, but in other colours


@pytest.mark.parametrize("variant", CONSTRUCTED, ids=lambda variant: variant.name)
def test_a_check_notices_pictures_that_do_not_give_the_answer(images, monkeypatch, variant) -> None:
    generator, honest, given = only(images, variant), module.encoded, []
    # A scene in which nothing was drawn has nothing to be spoiled.
    index = next(k for k in range(20) if generator.make(k).record["construction"].get("objects") != [])
    first = generator.make(index)
    answer = first.record["answer"]
    truth = "ABCDEFGH".index(answer) if isinstance(answer, str) else 0

    def tampered(picture: Image.Image, image_format: str, quality: int) -> bytes:
        given.append(picture)
        if len(given) > len(first.files):  # the sample is drawn again
            return honest(picture, image_format, quality)
        return honest(spoiled(variant.name, len(given) - 1, picture, truth), image_format, quality)

    monkeypatch.setattr(module, "encoded", tampered)
    made = generator.make(index)
    assert re.match(rf"sample {index} of seed 5 \({variant.task} {variant.name}.*has the answer", made.wrong[0])
    assert made.rejected[f"{variant.task} {variant.name}: its pictures give another answer"] == len(made.wrong) == 1
    assert made.record["answer"] == answer and len(given) > len(first.files)


def test_too_many_wrong_answers_are_an_error(folder, monkeypatch, tmp_path) -> None:
    """A program that spoils every second picture is not to be trusted; ten samples are no reason to stop."""
    options = Options(12, seed=2, max_side=128, tasks=("reconstruct",))
    honest, given = module.encoded, []

    def tampered(picture: Image.Image, image_format: str, quality: int) -> bytes:
        given.append(picture)
        return honest(Image.new("RGB", picture.size) if len(given) % 4 == 0 else picture, image_format, quality)

    monkeypatch.setattr(module, "encoded", tampered)
    monkeypatch.setattr(summary, "_WRONG_AT_MOST", 2)
    with pytest.raises(WrongAnswer, match=r"had an answer that their pictures do not give, more than 1\.0%"):
        generate(tmp_path / "out", folder, options)
    assert not (tmp_path / "out").exists()
    given.clear()
    made = generate(tmp_path / "out", folder, replace(options, max_wrong=1.0))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["wrong"] == {"samples": len(made.wrong), "first": made.wrong} and len(made.wrong) > 2
    assert manifest["variants"].keys() >= {"reconstruct patch"} and made.made.total() == 12


def test_a_sample_whose_check_always_fails_is_not_blamed_on_the_images(folder, monkeypatch) -> None:
    options = Options(1, seed=2, max_side=128, tasks=("reconstruct",))
    monkeypatch.setattr(module, "ATTEMPTS", 5)
    monkeypatch.setattr(module, "encoded", lambda picture, *how: encoded(Image.new("RGB", picture.size), *how))
    with pytest.raises(
        WrongAnswer, match=r"its check fails on every sample that 5 attempts gave, \d in all\."
    ) as error:
        generate(None, folder, options)
    assert "has the answer" in str(error.value) and "Uniform" not in str(error.value)


def test_noise_of_rounding_is_no_likeness() -> None:
    """Two pieces of one colour, each with values that differ by one grey level at the same places."""
    noise = np.random.default_rng(0).integers(0, 2, (96, 128, 1)).astype(np.uint8)
    flat = np.repeat(100 + noise, 3, axis=2)
    view = random_view(Image.fromarray(flat), 0.9, 0, np.random.default_rng(1), 128)
    seen = np.asarray(view.of(Image.fromarray(flat)))
    assert match._sameness(flat, seen, view, (64, 48), 12, 2.0) == 0
    assert correlation(flat, flat) == 0
    clear = np.repeat(np.uint8(100) + 40 * noise, 3, axis=2)
    assert correlation(clear, clear) == pytest.approx(1)


def test_an_answer_is_kept_when_a_sample_is_drawn_again(images) -> None:
    variant = next(one for one in VARIANTS if one.name == "turn")
    answers, used = [], []

    def third_time(draw: Draw) -> Sample:
        sample = variant.make(draw)
        answers.append(sample.answer)
        used.append(tuple(draw.used))
        if len(answers) < 6:
            raise Ambiguous("not yet")
        return sample

    made = only(images, replace(variant, make=third_time)).make(3)
    assert set(answers) == {made.record["answer"]} and made.rejected["reconstruct turn: not yet"] == 5
    assert len(set(used)) > 1 and made.record["sources"] == list(used[-1])


def test_damaged_images_do_not_cost_the_others_of_a_sample(folder, tmp_path) -> None:
    """Half of the files end in the middle of their pixels: samples of six pictures are made from the other half."""
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        (tmp_path / f"whole{number}.png").write_bytes(path.read_bytes())
        (tmp_path / f"broken{number}.png").write_bytes(path.read_bytes()[:20_000])
    options = Options(1, seed=1, max_side=128)
    whole = prepare_generator(tmp_path, None, options, summary.Summary())
    generator = only(whole.images, next(one for one in VARIANTS if one.name == "retrieval"), 1.0)
    made = [generator.make(index) for index in range(3)]
    assert all(name.startswith("whole") for one in made for name in one.record["sources"])
    damaged = {name for one in made for name in one.damaged}
    assert damaged and all(name.startswith("broken") for name in damaged)


def test_a_view_shows_a_point_where_its_map_says() -> None:
    """A white block on black, found again in the view; and no view looks beyond its picture."""
    base = np.zeros((200, 300, 3), dtype=np.uint8)
    base[96:104, 146:154] = 255
    picture = Image.fromarray(base)
    for seed in range(8):
        view = random_view(picture, 0.9, 30, np.random.default_rng(seed), 300, mirror=seed % 2 == 1)
        rows, columns = np.nonzero(np.asarray(view.of(picture)).mean(axis=2) > 127)
        x, y = view.from_picture((150, 100))
        assert abs(columns.mean() + 0.5 - x) < 0.6 and abs(rows.mean() + 0.5 - y) < 0.6
        assert np.allclose(view.to_picture((x, y)), (150, 100))
        corners = np.array([view.to_picture((x, y)) for x in (0, view.size[0]) for y in (0, view.size[1])])
        assert (corners > -1e-6).all() and (corners < np.array([300, 200]) + 1e-6).all()


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (5, 3, 1, 1)])
def test_tasks_have_their_shares_at_every_point(weights) -> None:
    menu, counts = Menu.of(TASKS, weights, None), Counter()
    for index in range(2000):
        counts[menu.variant(index, 0.3, 0.0).task] += 1
        off = [counts[task] - (index + 1) * weight / sum(weights) for task, weight in zip(TASKS, weights, strict=True)]
        assert max(map(abs, off)) < 4


def test_a_task_that_is_left_out_is_never_made() -> None:
    menu = Menu.of(("count", "match"), None, None)
    made = {menu.variant(index, 0.3, (index % 7) / 7).name for index in range(200)}
    assert made == {"total", "kind", "point", "retrieval", "different"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_leaves_nothing_behind(folder, tmp_path, number) -> None:
    """Stopped in the middle of writing, with worker processes: neither DST nor its unfinished form stays."""
    command = [sys.executable, TOOL, tmp_path / "out", "--images", folder, "--samples", "100000", "--workers", "2"]
    process = subprocess.Popen([*map(str, command), "--max-side", "128"], stderr=subprocess.PIPE)
    _wait_until(lambda: any(tmp_path.glob(".out.partial-*/images/*/*")))
    process.send_signal(number)
    _, message = process.communicate(timeout=300)
    assert process.returncode in (130, 143) and b"nothing was left half-written" in message
    assert not any(tmp_path.iterdir())


def test_a_killed_run_takes_its_workers_along(folder, tmp_path) -> None:
    command = [sys.executable, TOOL, tmp_path / "out", "--images", folder, "--samples", "100000", "--workers", "2"]
    process = subprocess.Popen([*map(str, command), "--max-side", "128"], stderr=subprocess.DEVNULL)
    _wait_until(lambda: any(tmp_path.glob(".out.partial-*/images/*/*")))
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    assert len(workers) == 2
    _wait_until(lambda: not any(_runs(worker) for worker in workers))


def _wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def _runs(process: str) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_objects_of_one_colour_never_touch() -> None:
    """Others may be covered in part in a crowded scene; two of one colour would be one blot to whoever counts them."""
    scene = Scene(Image.new("RGB", (96, 96), (128, 128, 128)), visible=0.6)
    rng, placed = np.random.default_rng(0), Counter()
    for number in range(40):
        colour = ("red", "blue")[number % 2]
        with suppress(Ambiguous):
            scene.place(Kind("circle", colour), 20, rng)
            placed[colour] += 1
    whole = [label(np.isin(scene.owner, mine)).max() for mine in _numbers_by_colour(scene).values()]
    parts = [sum(label(scene.owner == k).max() for k in mine) for mine in _numbers_by_colour(scene).values()]
    assert min(placed.values()) >= 3 and whole == parts  # connected areas of a colour: as many as of its objects
    assert min(scene.shown(k) for k in range(len(scene.objects))) < 1


def _numbers_by_colour(scene: Scene) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = {}
    for number, one in enumerate(scene.objects):
        numbers.setdefault(one.kind.colour, []).append(number)
    return numbers
