"""The stages for one GPU: the recipe's own but for the machine, and small enough for the machine that they name."""

from __future__ import annotations

import re
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from megatron_apriel.config.load import load_stage
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.checks import check_layout
from megatron_apriel.planning.choosing_moments import allowed
from megatron_apriel.planning.hardware import KINDS
from megatron_apriel.planning.memory import RankMemory, rank_memory

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "examples" / "one_gpu").glob("*.yaml"))
APRIEL = Architecture.from_preset("apriel-15b")
OF_THE_MACHINE = {"parallel", "precision", "recompute", "optimizer.host", "optimizer.moments", "checkpoint.every"}
GIB = 2**30


def settings(config: StageConfig) -> dict[str, Any]:
    """But those of the machine, by their places."""
    sections = config.model_dump(mode="json")
    for place in OF_THE_MACHINE:
        section, _, name = place.partition(".")
        if name:
            del sections[section][name]
        else:
            del sections[section]
    return sections


def memory(config: StageConfig, kind: str) -> RankMemory:
    """With exact states, where the file leaves their form open."""
    exact = next(iter(allowed(config)))
    return rank_memory(exact, APRIEL, check_layout(config, APRIEL, 1), 0, KINDS[kind].available)


def test_every_stage_has_one() -> None:
    assert [path.name for path in FILES] == sorted(path.name for path in (ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_only_the_machine_is_another(path: Path) -> None:
    ours, clusters = load_stage(path), load_stage(ROOT / "examples" / path.name)
    assert settings(ours) == settings(clusters)
    assert ours.parallel.tensor == ours.parallel.pipeline == 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_fits_on_what_it_names(path: Path) -> None:
    config, text = load_stage(path), path.read_text(encoding="utf-8").replace("\n# ", " ")
    needed = memory(config, "h200")
    stated = re.search(r"Needs (\d+) GiB of host memory", text)
    assert needed.total <= KINDS["h200"].available + 1
    assert ceil(needed.host / GIB) == (int(stated[1]) if stated else 0)
    smaller = re.search(r"moments are kept in 16 bits, which needs (\d+)", text)
    assert bool(smaller) == (config.optimizer.moments == "auto")
    if smaller:
        narrow = memory(load_stage(path, ["optimizer.moments=bfloat16"]), "h200")
        assert ceil(narrow.host / GIB) == int(smaller[1])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_page_says_the_same(path: Path) -> None:
    page = (ROOT / "docs" / "one_gpu.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("| `") and f"`{path.name}`" in line]
    _, _, sequence, host, *_ = (cell.strip() for cell in row.split("|"))
    config = load_stage(path)
    needed = ceil(memory(config, "h200").host / GIB)
    assert sequence == str(config.sequence_length) and host == (f"{needed} GiB" if needed else "none")


def test_what_fits_on_80_gb() -> None:
    realign = ROOT / "examples" / "one_gpu" / "realign.yaml"
    assert "On a GPU of 80 GB: precision.fp8=none" in realign.read_text(encoding="utf-8")
    assert memory(load_stage(realign, ["precision.fp8=none"]), "h100").total < KINDS["h100"].available
    assert memory(load_stage(realign), "h100").total > KINDS["h100"].available
    for path in FILES:
        if path != realign:
            held = memory(load_stage(path, ["optimizer.host=1"]), "h100")
            assert held.weights + held.gradients > KINDS["h100"].available
