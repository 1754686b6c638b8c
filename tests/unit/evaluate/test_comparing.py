"""Results side by side: differences on the same items only, what makes results another thing, tables and pictures."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from megatron_apriel.errors import ConfigError, ExitCode, OutputError
from megatron_apriel.formats.run_directory import RunDirectory, checkpoint_path
from megatron_apriel.formats.run_evaluations import ScoreRecord
from tests.unit.evaluate.conftest import Answering, run, started, write_lines
from tests.unit.evaluate.test_evaluation import asked
from tools import compare


def of_number(body: dict[str, Any]) -> int:
    return int(asked(body).split()[-1].rstrip("?"))


@pytest.fixture
def before(tmp_path: Path, data: Path, answering: Answering) -> Path:
    """Right on 0 to 5, which A answers."""
    folder = tmp_path / "before"
    assert run(folder, data, "--model", answering(lambda body: "Answer: A").address, "--name", "before") == 0
    return folder


@pytest.fixture
def after(tmp_path: Path, data: Path, answering: Answering) -> Path:
    """Right on all but 0 and 1."""
    server = answering(lambda body: "Answer: B" if of_number(body) >= 6 or of_number(body) < 2 else "Answer: A")
    folder = tmp_path / "after"
    assert run(folder, data, "--model", server.address, "--name", "after") == 0
    return folder


def rows(tmp_path: Path, *words: str) -> list[dict[str, Any]]:
    file = tmp_path / "compared.json"
    assert compare.main([*words, "--json", str(file), "--overwrite"]) == ExitCode.OK
    found: list[dict[str, Any]] = json.loads(file.read_text())["rows"]
    return found


def followed(run: Path, *evaluations: tuple[int, Path]) -> Path:
    """A run with copies of evaluations as those of its steps."""
    directory = RunDirectory(run)
    directory.evaluations.mkdir(parents=True)
    with (directory.evaluations / "scores.jsonl").open("w") as file:
        for step, folder in evaluations:
            shutil.copytree(folder, checkpoint_path(directory.evaluations, step))
            record = ScoreRecord(step=step, tokens=step * 512, scores={}, intervals={}, without_answer={}, path="",
                                 seconds=0.0)  # fmt: skip
            file.write(record.model_dump_json() + "\n")
    return run


def test_a_difference_of_the_same_items(tmp_path: Path, before: Path, after: Path,
                                        capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    first, second = rows(tmp_path, str(before), str(after))
    assert (first["score"], second["score"]) == (60.0, 80.0)
    assert (first["difference"], first["items_of_both"]) == (None, 0)
    assert second["difference"] == pytest.approx(20.0) and second["items_of_both"] == 10  # four better, two worse
    assert second["difference_low"] < 0 < second["difference_high"]
    (back, _) = rows(tmp_path, str(before), str(after), "--to", str(after))
    assert back["difference"] == pytest.approx(-20.0)
    said = capsys.readouterr().out
    assert "+20.00" in said and f"differences to {before}" in said


def test_items_that_changed_are_no_pairs(tmp_path: Path, before: Path, after: Path,
                                         capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    items = after / "mmlu_pro" / "items.jsonl"
    lines = [json.loads(line) for line in items.read_text().splitlines()]
    lines[0]["parts"] = ["another question"]
    lines[1]["grading"]["gold"] = "C"
    write_lines(items, lines)
    _, second = rows(tmp_path, str(before), str(after))
    assert second["items_of_both"] == 8
    assert second["difference"] == pytest.approx(50.0)  # of 2 to 9 all are right, before it were four
    assert "1 of MMLU-Pro are not asked" in capsys.readouterr().out


def test_what_makes_results_another_thing_is_named(
    tmp_path: Path, data: Path, before: Path, answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (data / "mmlu_pro" / "test.jsonl").read_text().splitlines()
    (data / "mmlu_pro" / "test.jsonl").write_text("\n".join(lines[:6]) + "\n")
    other = tmp_path / "other"
    words = ("--model", answering(lambda body: "Answer: A").address, "--temperature", "0", "--name", "other")
    assert run(other, data, *words) == 0
    verdicts = other / "mmlu_pro" / "verdicts-1.jsonl"
    version = json.loads(verdicts.read_text().splitlines()[0])["scorer"]
    verdicts.write_text(verdicts.read_text().replace(version, "letter 0"))
    _, second = rows(tmp_path, str(before), str(other))
    said = capsys.readouterr().out
    assert f"{other} was asked with other settings than {before}: temperature 0.0, not 0.6." in said
    assert f"{other} and {before} have other data of MMLU-Pro." in said
    assert f"{other} was scored by other scorers than {before} on MMLU-Pro: letter 0, not {version}." in said
    assert (second["score"], second["items_of_both"], second["difference"]) == (100.0, 6, 0.0)


def test_a_run_over_its_tokens(tmp_path: Path, before: Path, after: Path) -> None:
    trained = followed(tmp_path / "run", (0, before), (100, after), (200, after))
    (trained / "evaluations" / "step_00000300").mkdir()  # begun, and not whole
    found = rows(tmp_path, str(trained), str(before))
    assert [row["tokens"] for row in found] == [0, 51_200, 102_400, None]
    assert [row["difference"] for row in found] == [None, *[pytest.approx(20.0)] * 2, 0.0]
    assert found[1]["result"] == f"{trained}, step 100"
    assert rows(tmp_path, str(after), "--to", str(trained))[0]["difference"] == pytest.approx(20.0)


@pytest.mark.parametrize("name", ["scores.png", "folder/scores.svg", "scores.pdf"])
def test_a_plot(tmp_path: Path, before: Path, after: Path, name: str) -> None:
    trained = followed(tmp_path / "$run_", (0, before), (100, after))
    for results in ([trained, after], [before, after]):
        picture = tmp_path / "plots" / name
        assert compare.main([*map(str, results), "--plot", str(picture)]) == ExitCode.OK
        if picture.suffix == ".png":
            with Image.open(picture) as image:
                assert image.width > 400
        elif picture.suffix == ".svg":
            assert "</svg>" in picture.read_text()
        picture.unlink()


def test_rows_for_programs(tmp_path: Path, before: Path, after: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([str(before), str(after), "--csv", "-"]) == ExitCode.OK
    first, second = csv.DictReader(capsys.readouterr().out.splitlines())
    assert (first["benchmark"], first["score"], first["difference"]) == ("mmlu_pro", "60.0", "")
    assert float(second["difference"]) == pytest.approx(20.0)
    assert compare.main([str(before), "--json", "-"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["compared_to"] == str(before)


def test_files_that_exist_are_kept(tmp_path: Path, before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, name in (("--json", "a.json"), ("--csv", "a.csv"), ("--plot", "a.png")):
        capsys.readouterr()
        file = tmp_path / name
        file.write_text("somebody's")
        words = [str(before), option, str(file)]
        with pytest.raises(OutputError, match=r"exists(?s:.*)--overwrite to replace it"):
            compare.main(words)
        assert file.read_text() == "somebody's" and not capsys.readouterr().out
        assert compare.main([*words, "--overwrite"]) == ExitCode.OK
        assert b"somebody's" not in file.read_bytes()
        link = tmp_path / f"link-{name}"
        link.symlink_to(file)
        file.write_text("somebody's")
        with pytest.raises(OutputError, match="exists"):
            compare.main([str(before), option, str(link)])
        assert compare.main([str(before), option, str(link), "--overwrite"]) == ExitCode.OK
        assert link.is_symlink() and b"somebody's" not in file.read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_no_file_of_a_result_is_replaced(tmp_path: Path, before: Path, after: Path) -> None:
    kept = (before / "report.json").read_bytes()
    for words in (["--json", str(before / "report.json")], ["--csv", str(before / "mmlu_pro" / "answers-1.jsonl")]):
        with pytest.raises(OutputError, match=r"belongs to the input (?s:.*)An input is only read"):
            compare.main([str(after), str(before), *words, "--overwrite"])
    assert (before / "report.json").read_bytes() == kept
    assert compare.main([str(before), "--json", str(before / "compared.json")]) == ExitCode.OK


def test_files_that_cannot_be_written(tmp_path: Path, before: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for path, said in ((tmp_path / "file" / "a.json", "is a file"), (tmp_path, "is no file"),
                       (Path("/dev/null"), "is no file")):  # fmt: skip
        with pytest.raises(OutputError, match=said):
            compare.main([str(before), "--json", str(path), "--overwrite"])
    with pytest.raises(ConfigError, match="--csv and --json are both"):
        compare.main([str(before), "--json", str(tmp_path / "a"), "--csv", str(tmp_path / "x" / ".." / "a")])
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); "
        "from megatron_apriel.errors import run_command; from tools import compare; "
        "sys.exit(run_command(lambda: compare.main(sys.argv[1:])))"
    )
    for option, name in (("--json", "a.json"), ("--csv", "a.csv"), ("--plot", "a.svg")):
        full = tmp_path / "full" / name
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with started(["-c", program, str(before), option, str(full)], **how) as process:
            said = process.communicate()[1]
        assert process.returncode == ExitCode.FAILED and f"{full}: File too large" in said and "Traceback" not in said
        assert not list((tmp_path / "full").iterdir())


def test_what_cannot_be_compared(tmp_path: Path, before: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="it holds no evaluation"):
        compare.main([str(before), str(data)])
    (tmp_path / "run" / "evaluations").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no evaluation in it is whole"):
        compare.main([str(tmp_path / "run")])
    for path, said in ((tmp_path / "nowhere", "does not exist"), (before / "report.json", "is no directory")):
        with pytest.raises(ConfigError, match=said):
            compare.main([str(path)])
    with pytest.raises(ConfigError, match="is no picture's name"):
        compare.main([str(before), "--plot", str(tmp_path / "scores.txt")])
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "settings.json").write_text((before / "settings.json").read_text())
    assert compare.main([str(tmp_path / "begun"), str(before)]) == ExitCode.OK
    assert f"{tmp_path / 'begun'} holds no benchmark" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        compare.main([])
    assert ended.value.code == ExitCode.USAGE
