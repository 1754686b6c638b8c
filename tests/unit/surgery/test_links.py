"""Links in a model's directory: followed, named where they lead out of it, refused where they lead to no file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from surgery_files import text_config, text_tensors

from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.sidecars import sidecar_files, write_sidecars
from megatron_apriel.testing.limits import refused_within
from megatron_apriel.testing.plain_safetensors import write_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = write_model(tmp_path / "model", text_tensors(2), text_config(2))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "LICENSE").write_text("yours")
    return directory


def copied(source: Path, tmp_path: Path) -> list[str]:
    destination = tmp_path / "result"
    shutil.rmtree(destination, ignore_errors=True)
    destination.mkdir()
    name, *copied = write_sidecars(destination, source, text_config(2))
    assert name == "config.json"
    return copied


def test_files_and_links_inside_are_copied_quietly(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "kept").mkdir()
    (source / "LICENSE").rename(source / "kept" / "LICENSE")
    (source / "LICENSE").symlink_to("kept/LICENSE")
    assert copied(source, tmp_path) == ["tokenizer.json", "LICENSE"]
    assert (tmp_path / "result" / "LICENSE").read_text() == "yours"
    assert not (tmp_path / "result" / "LICENSE").is_symlink()
    assert capsys.readouterr() == ("", "")


def test_a_link_that_leads_out_is_named_once(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "private.txt").write_text("mine")
    (source / "NOTICE").symlink_to(tmp_path / "private.txt")
    assert "NOTICE" in copied(source, tmp_path)
    expected = f"note: 1 file is a link that leads out of {source}, and the contents were copied: "
    assert capsys.readouterr().err == f"{expected}NOTICE -> {tmp_path / 'private.txt'}\n"
    copied(source, tmp_path)
    assert capsys.readouterr().err == ""


def test_a_folder_that_is_a_link_is_named(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "a.jinja").write_text("a")
    (source / "additional_chat_templates").symlink_to(tmp_path / "templates")
    copied(source, tmp_path)
    assert f"additional_chat_templates/a.jinja -> {tmp_path / 'templates' / 'a.jinja'}" in capsys.readouterr().err


def test_a_download_cache_takes_one_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hugging Face's cache keeps files by their digest, and a snapshot of links to them."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(source.iterdir())):
        file.rename(blobs / f"{number:064}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:064}")
    assert copied(snapshot, tmp_path) == ["tokenizer.json", "LICENSE"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: 4 files are links that lead out of {snapshot}, and the contents were copied: ")
    assert line.endswith(" and others") and "blobs" in line


def test_a_directory_that_is_a_link_itself_is_no_link_out(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "current").symlink_to(source)
    copied(tmp_path / "current", tmp_path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "nothing", "large"])
def test_what_is_no_file_of_a_model_is_refused(source: Path, kind: str, tmp_path: Path) -> None:
    file = source / "NOTICE"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        file.symlink_to(tmp_path / "pipe")
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "nothing":
        file.symlink_to("../blobs/none")
    else:
        with file.open("wb") as stream:
            stream.truncate(2**40)
    refusal = refused_within(sidecar_files, source)
    assert refusal.startswith("CheckpointError: ") and "NOTICE" in refusal


def test_a_manifest_that_cannot_be_read_is_not_passed_over(source: Path) -> None:
    from megatron_apriel.surgery.manifest import earlier_manifest

    assert earlier_manifest(source) is None
    (source / "surgery.json").write_text('{"operation": "average", "distance": Infinity}')
    assert earlier_manifest(source)["distance"] == float("inf")
    (source / "surgery.json").write_text('{"operation": ')
    with pytest.raises(CheckpointError, match=r"surgery\.json cannot be read"):
        earlier_manifest(source)
