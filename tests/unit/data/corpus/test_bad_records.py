"""The file of all bad records: whole whatever becomes of the corpus, and never in the way of inputs and corpora."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_apriel.data.corpus.bad_records import bad_records_in
from megatron_apriel.data.raw import problems as module
from megatron_apriel.data.raw.problems import Problem, ProblemTally
from megatron_apriel.errors import DataError, OutputError

Prepare = Callable[..., int]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Twelve records; the ones at odd lines have no text, and one has a name that is no UTF-8."""
    file = tmp_path / "raw" / "mixed.jsonl"
    file.parent.mkdir()
    rows = [{"text": ""} if line % 2 else {"text": f"words {line}"} for line in range(1, 13)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def places(path: Path) -> list[str]:
    return [json.loads(line)["place"].rpartition("/")[2] for line in path.read_text(encoding="utf-8").splitlines()]


BAD = [f"mixed.jsonl:{line}" for line in range(1, 13, 2)]


@pytest.mark.parametrize(("options", "written"), [((), True), (("--dry-run",), False), (("--show", "9"), True)])
def test_all_are_listed_with_a_corpus_and_without(
    prepare_data: Prepare, raw: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...], written: bool,
) -> None:  # fmt: skip
    path, out = tmp_path / "new" / "bad.jsonl", tmp_path / "out"
    words = ("--input", raw, "--model", model, "--workers", "1", "--max-bad", "50%", *options)
    assert prepare_data(out, *words, "--bad-records", path) == 0
    assert places(path) == BAD and out.exists() == written
    assert f"... and 1 more; all are listed in {path}\n" in capsys.readouterr().err
    reasons = {json.loads(line)["reason"] for line in path.read_text(encoding="utf-8").splitlines()}
    assert len(reasons) == 1 and next(iter(reasons))


def test_all_are_listed_where_too_many_are_bad(prepare_data: Prepare, raw: Path, model: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "bad.jsonl", tmp_path / "out"
    words = (out, "--input", raw, "--model", model, "--workers", "2")
    with pytest.raises(DataError, match=r"6 of 12 records are bad(?s:.*)--bad-records FILE lists all") as error:
        prepare_data(*words)
    with pytest.raises(DataError, match=r"6 of 12 records are bad") as error:
        prepare_data(*words, "--bad-records", path)
    assert f"{path} lists all" in str(error.value) and places(path) == BAD and not out.exists()
    with pytest.raises(OutputError, match=r"bad\.jsonl exists"):
        prepare_data(*words, "--bad-records", path)
    assert prepare_data(*words, "--bad-records", path, "--overwrite", "--max-bad", "0.5") == 0
    assert places(path) == BAD and sorted(one.name for one in tmp_path.iterdir()) == ["bad.jsonl", "out", "raw"]


def test_more_than_a_corpus_keeps_are_all_listed(
    prepare_data: Prepare, raw: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "KEPT_PROBLEMS", 5)
    words = ("--input", raw, "--model", model, "--workers", "1", "--max-bad", "50%")
    assert prepare_data(tmp_path / "out", *words) == 0
    said = "... and 1 more, the first 5 of all listed in corpus.json; --bad-records FILE lists all\n"
    assert said in capsys.readouterr().err
    assert prepare_data(*words, "--dry-run") == 0
    assert "... and 1 more; --bad-records FILE lists all\n" in capsys.readouterr().err
    assert prepare_data(*words, "--dry-run", "--bad-records", tmp_path / "bad.jsonl") == 0
    assert places(tmp_path / "bad.jsonl") == BAD


@pytest.mark.parametrize("place", ["raw/bad.jsonl", "raw/mixed.jsonl", "out/bad.jsonl", "out", "out-held-out/bad"])
def test_a_list_lies_in_no_input_and_no_corpus(
    prepare_data: Prepare, raw: Path, model: Path, tmp_path: Path, place: str
) -> None:
    words = (tmp_path / "out", "--input", raw.parent, "--model", model, "--held-out", "50%", "--max-bad", "50%")
    before = raw.read_bytes()
    with pytest.raises(OutputError, match=r"the list of bad records .* (is|lies in) the (input|corpus) "):
        prepare_data(*words, "--bad-records", tmp_path / place, "--overwrite")
    assert raw.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_ends_halfway_leaves_no_list(tmp_path: Path, error: type[BaseException]) -> None:
    """As a list that is not whole would look like one."""
    tally = ProblemTally()
    with pytest.raises(error), bad_records_in(tmp_path / "bad.jsonl", tally):
        tally.add("a", Problem("a:1", "\ud800 is no letter"))
        raise error
    assert list(tmp_path.iterdir()) == []
