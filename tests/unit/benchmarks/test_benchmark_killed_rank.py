"""The measurement of a killed rank: its rows by hand, and that it kills the last rank and notices the end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks import killed_rank
from megatron_apriel.errors import ConfigError

FOUND = {
    "launcher": "bare", "killed": 6, "seconds": 3.14, "codes": "1, -9", "said": "why", "saved": 4, "resumed": 4,
    "lost": 2,
}  # fmt: skip


@pytest.mark.parametrize(("limit", "ended"), [(60, "3.1"), (3, "not within 3")])
def test_rows(limit: float, ended: str) -> None:
    assert killed_rank.row(FOUND, limit) == ["bare", "6", ended, "1, -9", "why", "4", "4", "2"]
    assert killed_rank.row(FOUND | {"resumed": None}, limit)[-2:] == ["-", "2"]
    assert len(killed_rank.HEADINGS) == 8


def test_the_page_has_the_rows() -> None:
    page = killed_rank.page({"layers": 2, "model": "apriel-15b", "parallel": "{}", "limit": 60, "found": [FOUND]})
    assert "| bare | 6 | 3.1 |" in page.body
    assert page.measured == ["2 decoder layers at full width, random weights; parallel={}, bare"]


@pytest.mark.parametrize("launcher", killed_rank.LAUNCHERS)
def test_only_the_last_rank_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str) -> None:
    # In the trainer's place, a module of that name whose ranks say who they are and wait for each other's end.
    package = tmp_path / "megatron_apriel"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "train.py").write_text(
        "import os, pathlib, sys, time\n"
        "here = pathlib.Path(sys.argv[1]).parent\n"
        "own = here / ('rank' + os.environ['RANK'])\n"
        "own.with_suffix('.half').write_text(str(os.getpid()))\n"
        "own.with_suffix('.half').rename(own)\n"
        "print('started', flush=True)\n"
        "while not (here / 'killed').exists(): time.sleep(0.05)\n"
        "print('[rank0]: Traceback\\n[rank0]: x.DistError: why', flush=True)\n"
        "print('2026 rank 1 of 2 is gone; rank 0 ends', flush=True)\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setattr(killed_rank, "ROOT", tmp_path)
    monkeypatch.setattr(killed_rank, "paths", lambda: {"PATH": "", "PYTHONPATH": str(tmp_path)})
    run = killed_rank.Run(tmp_path / "stage.yaml", [], 2, launcher, tmp_path / "logs")
    try:
        until = time.monotonic() + 300
        while not all((tmp_path / f"rank{rank}").exists() for rank in range(2)) and time.monotonic() < until:
            time.sleep(0.05)
        assert not run.ended()
        last, sizes = int((tmp_path / "rank1").read_text()), run.sizes()
        run.kill_last_rank()
        (tmp_path / "killed").touch()
        while Path(f"/proc/{last}/cmdline").exists() and Path(f"/proc/{last}/cmdline").read_bytes():
            assert time.monotonic() < until
            time.sleep(0.05)
        first = Path(f"/proc/{int((tmp_path / 'rank0').read_text())}")
        assert launcher == "torchrun" or first.exists()  # torchrun itself ends the rest
        if launcher == "bare":
            while run.said_after(sizes) != "2026 rank 1 of 2 is gone; rank 0 ends":
                assert time.monotonic() < until
                time.sleep(0.05)
    finally:
        run.stop()
    assert run.ended() and "runs on" not in run.exit_codes
    assert run.exit_codes.endswith("-9") or launcher == "torchrun"


def test_one_rank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--gpus=1"):
        killed_rank.main(["--tiny", "--gpus", "1", "--output", str(tmp_path)])
