"""Output directories are whole or absent, whatever stops the work."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_apriel import locks, outputs
from megatron_apriel.errors import OutputError
from megatron_apriel.outputs import check_destination, check_space, whole_directory

WRITER = """
import resource, sys, time
from pathlib import Path
from megatron_apriel.errors import run_command
from megatron_apriel.outputs import whole_directory

def main():
    with whole_directory(sys.argv[1], overwrite=True) as partial:
        (partial / "config.json").write_text("new")
        if sys.argv[2] == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            (partial / "weights").write_bytes(bytes(5000))
        print("ready", flush=True)
        time.sleep(600)

sys.exit(run_command(main))
"""


def start_writer(destination: Path, how: str = "wait") -> subprocess.Popen[str]:
    """A process that is in the middle of writing ``destination``."""
    command = [sys.executable, "-c", WRITER, str(destination), how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if how == "wait":
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    return process


def write(destination: Path, text: str, **options: object) -> None:
    with whole_directory(destination, **options) as partial:  # type: ignore[arg-type]
        (partial / "config.json").write_text(text)
        (partial / "folder").mkdir()
        (partial / "folder" / "file").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_result_appears_at_the_end_only(tmp_path: Path) -> None:
    destination = tmp_path / "new" / "deep" / "result"
    with whole_directory(destination) as partial:
        (partial / "config.json").write_text("{}")
        assert not destination.exists()
        assert partial.parent == destination.parent
    assert names(destination.parent) == ["result"]
    assert names(destination) == ["config.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_error_leaves_nothing_and_keeps_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    write(tmp_path / "old", "old")
    for destination in (tmp_path / "new" / "deep", tmp_path / "old"):
        with pytest.raises(error), whole_directory(destination, overwrite=True) as partial:
            (partial / "config.json").write_text("half")
            raise error
    assert names(tmp_path) == ["old"]
    assert (tmp_path / "old" / "config.json").read_text() == "old"


def test_forgotten_marker_is_a_defect_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"did not write config\.json"), whole_directory(tmp_path / "x"):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("atomic", [True, False])
def test_overwriting_replaces_everything(tmp_path: Path, atomic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not atomic:
        monkeypatch.setattr(outputs, "exchange", lambda first, second: False)
    write(tmp_path / "x", "old")
    (tmp_path / "x" / "left over").write_text("")
    write(tmp_path / "x", "new", overwrite=True)
    assert names(tmp_path) == ["x"]
    assert names(tmp_path / "x") == ["config.json", "folder"]
    assert (tmp_path / "x" / "config.json").read_text() == "new"


def test_this_system_exchanges_atomically(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    assert outputs.exchange(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path / "a") == ["b"]


def test_what_a_source_links_to_is_not_replaced(tmp_path: Path) -> None:
    write(tmp_path / "x", "old")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "weights").symlink_to(tmp_path / "x" / "config.json")
    (tmp_path / "source" / "loop").symlink_to("loop")  # which leads nowhere
    with pytest.raises(OutputError, match=r"x holds what .*source/weights of the input is a link to"):
        check_destination(tmp_path / "x", overwrite=True, inputs=[tmp_path / "source"])
    assert check_destination(tmp_path / "y", overwrite=True, inputs=[tmp_path / "source"])


def test_refused_destinations(tmp_path: Path) -> None:
    write(tmp_path / "x", "old")
    with pytest.raises(OutputError, match=r"exists\.\n.*unless you ask for it"):
        check_destination(tmp_path / "x")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").write_text("")
    with pytest.raises(OutputError, match=r"has no config\.json"):
        check_destination(tmp_path / "thesis", overwrite=True)
    with pytest.raises(OutputError, match="is a file"):
        check_destination(tmp_path / "thesis" / "chapter1", overwrite=True)
    for destination, relation in ((".", "contains"), ("x", "is"), ("x/inside", "lies inside")):
        with pytest.raises(OutputError, match=f"{relation} the input"):
            check_destination(tmp_path / destination, overwrite=True, inputs=[tmp_path / "x"])
    with pytest.raises(OutputError, match=r"y cannot be made: .*/thesis/chapter1 is a file"):
        check_destination(tmp_path / "thesis" / "chapter1" / "x" / "y")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match="loop is a link that leads back to itself"):
        check_destination(tmp_path / "loop")
    assert check_destination(tmp_path / "y", inputs=[tmp_path / "loop"]) == tmp_path / "y"
    check_space(tmp_path / "loop" / "x", 1)
    with pytest.raises(OutputError, match="bytes free"):
        check_space(tmp_path / "not" / "there", 10**18)
    assert check_destination(tmp_path / "y", inputs=[tmp_path / "x"]) == tmp_path / "y"


def test_a_file_that_is_seen_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, where another host wrote it; until it is whole it is not there."""
    file = tmp_path / "shard"
    monkeypatch.setattr(outputs, "SEEN_WITHIN_S", 0.0)
    assert not outputs.appears(file)
    file.write_bytes(b"half")
    assert outputs.appears(file, 4) and not outputs.appears(file, 5)
    monkeypatch.setattr(outputs, "SEEN_WITHIN_S", 60.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: file.write_bytes(b"whole"))
    assert outputs.appears(file, 5)


def test_refused_where_nothing_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(OutputError, match=f"cannot be made: nothing may be written in {tmp_path}"):
        check_destination(tmp_path / "new" / "x")
    (tmp_path / "there").mkdir()
    assert check_destination(tmp_path / "there" / "x") == tmp_path / "there" / "x"


def test_an_input_that_fails_is_not_called_an_output(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, whole_directory(tmp_path / "x"):
        (tmp_path / "source").read_bytes()
    assert f"{tmp_path / 'x'} could not be made: No such file or directory." in str(caught.value)
    assert str(tmp_path / "source") in str(caught.value)
    assert names(tmp_path) == []


def test_empty_directory_is_replaced_when_told_to(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(OutputError, match="exists"):
        write(tmp_path / "x", "new")
    write(tmp_path / "x", "new", overwrite=True)
    assert (tmp_path / "x" / "config.json").read_text() == "new"


def test_a_mounted_volume_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be renamed, which would be known after hours only. A name may have a space and letters of any kind."""
    mounted = tmp_path / "my out\\put \u00fc"
    mounted.mkdir()
    place = str(mounted).replace("\\", "\\134").replace(" ", "\\040")
    (tmp_path / "mounts").write_text(
        f"22 1 0:21 / / rw - overlay overlay rw\n36 22 98:0 /mnt {place} rw,noatime master:1 - ext3 /dev/root rw\n"
    )
    monkeypatch.setattr(outputs, "_MOUNTS", tmp_path / "mounts")
    with pytest.raises(OutputError, match=r"where something is mounted.*\n.*\n  Give a directory in it, as .*/result"):
        check_destination(mounted, overwrite=True)
    write(mounted / "result", "new")
    monkeypatch.setattr(outputs, "_MOUNTS", tmp_path / "absent")
    check_destination(tmp_path / "other", overwrite=True)


def test_link_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "config.json").read_text() == "new"


def test_destination_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="appeared while"), whole_directory(tmp_path / "x") as partial:
        (partial / "config.json").write_text("mine")
        write(tmp_path / "x", "theirs")
    assert (tmp_path / "x" / "config.json").read_text() == "theirs"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("appeared", ["notes.txt", "metrics.jsonl"])
def test_what_appears_meanwhile_is_no_earlier_result(appeared: str, tmp_path: Path) -> None:
    """A directory of somebody's, or one in which a run has begun: asked again, hours after the first time."""
    destination = tmp_path / "x"
    if appeared == "metrics.jsonl":
        write(destination, "old")
    with (
        pytest.raises(OutputError, match=r"exists and has no config.json|holds metrics.jsonl of a training run"),
        whole_directory(destination, overwrite=True) as partial,
    ):
        (partial / "config.json").write_text("mine")
        destination.mkdir(exist_ok=True)
        (destination / appeared).write_text("theirs")
    assert (destination / appeared).read_text() == "theirs"
    assert names(tmp_path) == ["x"]


def test_what_its_writer_takes_away_meanwhile_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends between two looks, of which the second would have been at its directory."""
    host = outputs.writer_name().split("-")[0]
    left = tmp_path / f".x.partial-{host}-999999999-1-abc"
    left.mkdir()

    def ends_now(number: int) -> str:
        if number == 999999999 and left.exists():
            left.rmdir()
        return ""

    monkeypatch.setattr(outputs, "start_time", ends_now)
    write(tmp_path / "x", "mine")
    assert names(tmp_path) == ["x"]


def test_sigterm_cleans_up(tmp_path: Path) -> None:
    write(tmp_path / "x", "old")
    process = start_writer(tmp_path / "x")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors == "stopped by SIGTERM; nothing was left half-written\n"
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x" / "config.json").read_text() == "old"


def test_own_handler_of_sigterm_stays(tmp_path: Path) -> None:
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with whole_directory(tmp_path / "x") as partial:
            (partial / "config.json").write_text("")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]
    assert names(tmp_path) == ["x"]


def test_what_a_killed_process_left_goes_with_the_next_run(tmp_path: Path) -> None:
    write(tmp_path / "x", "old")
    process = start_writer(tmp_path / "x")
    process.kill()
    while process.poll() is None:
        time.sleep(0.01)
    assert len(names(tmp_path)) == 2
    assert (tmp_path / "x" / "config.json").read_text() == "old"
    write(tmp_path / "x", "new", overwrite=True)
    assert names(tmp_path) == ["x"]


def test_what_a_live_process_writes_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, **options: object) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    process = start_writer(tmp_path / "x")
    try:
        with monkeypatch.context() as changed:  # as on a file system without locks
            changed.setattr(locks, "lock_descriptor", no_locks)
            write(tmp_path / "x", "mine")
        assert len(names(tmp_path)) == 2
        # As seen from another container on the same host: its number is not known here, and the lock is all there is.
        monkeypatch.setattr(outputs, "start_time", lambda number: "")
        write(tmp_path / "x", "mine again", overwrite=True)
        assert len(names(tmp_path)) == 2
    finally:
        process.terminate()
        process.communicate(timeout=120)
    assert names(tmp_path) == ["x"]


def test_what_another_host_left_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".x.partial-node17-4711-99-abc").mkdir()
    write(tmp_path / "x", "new")
    assert names(tmp_path) == [".x.partial-node17-4711-99-abc", "x"]
    assert "was begun on node17 and not finished" in capsys.readouterr().err


def test_kill_between_the_two_renames_is_mended(tmp_path: Path) -> None:
    write(tmp_path / "x", "old")
    host = outputs.writer_name().split("-")[0]
    (tmp_path / "x").rename(tmp_path / f".x.replaced-{host}-999999999-1-abc")
    with pytest.raises(ValueError), whole_directory(tmp_path / "x", overwrite=True):
        raise ValueError
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x" / "config.json").read_text() == "old"


def test_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path / "x", "old")
    process = start_writer(tmp_path / "x", "full")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "could not be written" in errors
    assert "largest allowed file is full" in errors
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x" / "config.json").read_text() == "old"


def test_room_is_reserved_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "file").open("xb") as stream:
        outputs.reserve(stream.fileno(), 5000)
        assert os.fstat(stream.fileno()).st_size == 5000
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            outputs.reserve(stream.fileno(), 2**63 - 1)
    with Path(os.devnull).open("wb") as stream, pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
        outputs.reserve(stream.fileno(), 5000)
    monkeypatch.setattr(outputs.ctypes, "CDLL", lambda name, use_errno: object())
    outputs.reserve(-1, 5000)  # a system without the call


@pytest.mark.parametrize("held", ["checkpoints", "metrics.jsonl"])
def test_a_training_run_is_never_replaced(held: str, tmp_path: Path) -> None:
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "config.json").write_text("{}")
    check_destination(tmp_path / "result", overwrite=True)
    (tmp_path / "result" / held).mkdir()
    with pytest.raises(OutputError, match=f"holds {held} of a training run"):
        check_destination(tmp_path / "result", overwrite=True)
