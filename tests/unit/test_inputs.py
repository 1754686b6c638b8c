"""What is opened as an input: regular files, up to a size; nothing that would be waited for."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from megatron_apriel.errors import ExitCode, run_command
from megatron_apriel.inputs import NotAFileError, TooLargeError, open_input, read_input, what_was_meant


def test_a_regular_file_is_read_and_keeps_its_name(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b"{}")
    (tmp_path / "link").symlink_to(file)
    with open_input(tmp_path / "link") as stream:
        assert stream.read() == b"{}"
        assert stream.name == str(tmp_path / "link")
    with open_input(file, buffering=0) as stream:
        assert stream.read(1) == b"{"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("buffering", [-1, 0])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, buffering: int) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(NotAFileError, match="it is a pipe"):
        open_input(tmp_path / "a.jsonl", buffering)


def test_a_device_and_a_socket_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path has to be short
    with pytest.raises(NotAFileError, match="it is a device"):
        open_input("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        with pytest.raises(NotAFileError, match="it is a socket"):
            open_input("s")
    with pytest.raises(IsADirectoryError):
        open_input(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_input("absent")


def test_a_pipe_that_took_the_place_of_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looking and opening."""
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    regular, first = (tmp_path / "file").stat(), iter([True])
    original = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **named: regular if next(first, None) else original(path, **named))
    with pytest.raises(NotAFileError, match="it is a pipe"):
        open_input(tmp_path / "pipe")


def test_more_than_the_most_is_refused_with_both_sizes(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b"12345")
    assert read_input(file, most=5) == b"12345"
    with pytest.raises(TooLargeError, match="it has 5 bytes, and at most 4"):
        read_input(file, most=4)


def test_a_file_that_tells_no_size_is_bounded_too() -> None:
    """Those of /proc say 0."""
    with pytest.raises(TooLargeError):
        read_input("/proc/self/maps", most=10)


def test_a_command_line_says_it_without_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert run_command(lambda: len(read_input(tmp_path / "pipe"))) == ExitCode.FAILED
    assert capsys.readouterr().err.endswith("pipe: it is a pipe, and only regular files are read.\n")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("raw/chat.json", "Did you mean raw/chat.jsonl?"),
        ("raw/chatt.jsonl", "Did you mean raw/chat.jsonl?"),
        ("rawdata/chat.jsonl", ""),
        ("corpora/wiki/train", "Did you mean corpora/wikis/train?"),
        ("corpora/wiki/test", ""),
        ("raw/other.parquet", ""),
        ("raw/chat.jsonl/inside", ""),
        ("s3://bucket/chat.jsonl", "It is an address, and nothing is downloaded from one: give a path."),
        ("hf://datasets/org/name", "It is an address, and nothing is downloaded from one: give a path."),
        ("raw/data-1.0", ""),
        ("org", ""),
    ],
)
def test_what_a_path_that_does_not_exist_may_have_meant(
    given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "chat.jsonl").touch()
    (tmp_path / "corpora" / "wikis" / "train").mkdir(parents=True)
    assert what_was_meant(given, "dataset") == meant
    assert what_was_meant(tmp_path / given if "://" not in given else given) == meant.replace(
        "mean ", f"mean {tmp_path}/"
    )


def test_names_of_a_hub_are_known_as_such_and_only_where_they_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = "hf download mistral-community/pixtral-12b --local-dir pixtral-12b"
    assert what_was_meant("mistral-community/pixtral-12b", "model").endswith(command)
    assert "hf download --repo-type dataset org/name --local-dir name" in what_was_meant("org/name", "dataset")
    assert what_was_meant("org/name") == ""
    assert what_was_meant("org/name/more", "model") == ""
    (tmp_path / "org").mkdir()
    assert what_was_meant("org/name", "model") == ""
