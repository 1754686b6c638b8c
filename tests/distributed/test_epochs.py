"""A stage of epochs: counted from its data when it begins, and not again when it resumes."""

from __future__ import annotations

from pathlib import Path

import pytest
from stage_runs import ARCHITECTURE, losses, records, run, stage_file, start

from megatron_apriel.config.load import load_stage
from megatron_apriel.data.loading import stage_data
from megatron_apriel.data.loading.stage_data import StageData
from megatron_apriel.errors import ExitCode
from megatron_apriel.planning.mixture_table import mixture_table
from megatron_apriel.tables import lines_of
from megatron_apriel.testing.ranks import RankFailure

ONE_SOURCE = "mixture=[{{corpus: {root}/images, loss: responses}}]"
EPOCHS = "tokens=null"


def test_epochs_are_counted_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = ONE_SOURCE.format(root=root)
    config = load_stage(stage_file(root, "epochs"), [one, EPOCHS, "epochs=2"])
    data = StageData.open(config, ARCHITECTURE)
    packs = data.sources[0].plan.num_packs
    assert data.config.tokens == 2 * packs * 128 and packs >= 3
    assert run(root, "epochs", one, EPOCHS, "epochs=2") == [ExitCode.OK]
    last = records(root, "epochs", "step")[-1]
    assert last["step"] == last["steps"] == -(-2 * packs // 4)
    resolved = load_stage(root / "epochs" / "config.resolved.yaml")
    assert (resolved.tokens, resolved.epochs) == (2 * packs * 128, None)
    before = losses(root, "epochs")

    newest = root / "epochs" / "checkpoints" / f"step_{last['step']:08d}"
    newest.rename(root / "epochs" / "aside")
    with monkeypatch.context() as patch:
        # Were epochs counted again, the run would have another length.
        patch.setattr(stage_data, "sequences_of_epochs", lambda *_: 1000)
        assert run(root, "epochs", one, EPOCHS, "epochs=2") == [ExitCode.OK]
    assert losses(root, "epochs") == before
    assert run(root, "epochs", one, f"tokens={resolved.tokens}") == [ExitCode.OK]
    with pytest.raises(RankFailure, match=rf"tokens: {2 * packs * 128} -> {3 * packs * 128}\n.*\n.*Add --change"):
        run(root, "epochs", one, EPOCHS, "epochs=3")


def test_a_run_begins_with_the_table_of_its_sources(root: Path) -> None:
    process = start(root, "table")
    output, _ = process.communicate(timeout=180)
    assert process.returncode == ExitCode.OK, output
    table = lines_of(mixture_table(StageData.open(load_stage(stage_file(root, "table")), ARCHITECTURE)), 120)
    assert all(line in output for line in table) and any("padding" in line for line in table)
