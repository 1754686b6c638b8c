"""Where a stage stands, known without torch: what a dry run says of a begun run, what a start is refused for."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from megatron_apriel.config.load import to_yaml
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.loading.stage_data import StageData
from megatron_apriel.errors import AprielError, CheckpointError, ConfigError, DataError, ExitCode, OutputError
from megatron_apriel.formats.architecture import Architecture, DecoderArchitecture
from megatron_apriel.formats.json_files import write_json
from megatron_apriel.formats.run_directory import SIDECAR_DIRECTORY, RunDirectory, checkpoint_path, partial_of
from megatron_apriel.formats.run_record import write_run_file
from megatron_apriel.planning.beginning import check_early, with_tokens
from megatron_apriel.planning.disk_room import check_room, least_checkpoint_bytes
from megatron_apriel.planning.dry_run import print_plan
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.corpora import VOCAB, write_corpus
from megatron_apriel.testing.stages import small_stage

MODEL = Architecture(DecoderArchitecture(32, 2, 2, 1, 16, 64, VOCAB))
SEQUENCES, LENGTH = 4, 64


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("beginning")
    write_hf_checkpoint(root / "model", MODEL)
    write_corpus(root / "text", [40 + document % 20 for document in range(60)])
    write_corpus(root / "other", [41 + document % 19 for document in range(60)], seed=1)
    return root


def stage(root: Path, output: Path, steps: int = 10, **changes: Any) -> StageConfig:
    settings = {
        "init_from": str(root / "model"),
        "output": str(output),
        "tokens": steps * SEQUENCES * LENGTH,
        "mixture": [{"corpus": str(root / "text")}],
    }
    return small_stage(LENGTH, SEQUENCES, **settings | changes)


def begin(config: StageConfig, step: int) -> Path:
    """A run that has saved a checkpoint, as the run's record says it; there are no weights in it."""
    data, sequences = StageData.open(config, MODEL), step * config.sequences_per_step
    newest = checkpoint_path(RunDirectory(config.output).checkpoints, step)
    (newest / SIDECAR_DIRECTORY).mkdir(parents=True)
    write_json(newest / SIDECAR_DIRECTORY / "config.json", MODEL.to_hf_config("float32"))
    extra = {
        "sequences": sequences,
        "config": config.model_dump(mode="json"),
        "corpora": [source.corpus.fingerprint for source in data.sources],
        "packs": list(data.mixture.packs_before(sequences)),
    }
    write_run_file(newest, {"step": step, "layout": None, "optimizer_groups": None, "extra": extra})
    return newest


def plan(config: StageConfig, **options: Any) -> str:
    output = io.StringIO()
    print_plan(config, 1, console=Console(file=output, width=120), **options)
    return output.getvalue()


def test_a_dry_run_says_where_the_run_stands(root: Path, tmp_path: Path) -> None:
    config = stage(root, tmp_path / "run")
    assert "resume" not in plan(config)
    newest = begin(config, 5)
    text = plan(config)
    assert f"The run would resume from {newest}, step 5 of 10." in text
    assert f"The model's shapes come from {newest}." in text
    assert "changed:" not in text


def test_a_change_is_previewed_and_nothing_is_written(root: Path, tmp_path: Path) -> None:
    config = stage(root, tmp_path / "run")
    begin(config, 5)
    before = sorted(tmp_path.rglob("*"))
    shorter = stage(root, tmp_path / "run", steps=20, optimizer={"peak": 5e-6})
    with pytest.raises(ConfigError, match="Add --change to change that within the run"):
        plan(shorter)
    lines = plan(shorter, change=True).splitlines()
    first = next(number for number, line in enumerate(lines) if line.endswith("step 5 of 20."))
    assert lines[first + 1 : first + 3] == [
        "  changed: tokens: 2560 -> 5120",
        "  changed: optimizer.peak: 1e-05 -> 5e-06",
    ]
    with pytest.raises(ConfigError, match="seed cannot change within a run"):
        plan(stage(root, tmp_path / "run", seed=7), change=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_change_of_epochs_is_said_in_epochs(root: Path, tmp_path: Path) -> None:
    def lasting(epochs: float | None, tokens: int | None = None) -> StageConfig:
        return stage(root, tmp_path / "run", epochs=epochs, tokens=tokens)

    config = with_tokens(lasting(2))
    assert config.tokens is not None
    begin(config, 3)
    assert "changed:" not in plan(lasting(2)) and "changed:" not in plan(lasting(None, config.tokens), change=True)
    with pytest.raises(ConfigError, match=r"epochs: 2\.0 -> 3\.0\n(?s:.*)Add --change"):
        plan(lasting(3))
    lines = plan(lasting(3), change=True).splitlines()
    place = lines.index("  changed: epochs: 2.0 -> 3.0")
    (more,) = re.findall(rf"changed: tokens: {config.tokens} -> (\d+)$", lines[place + 1])
    assert int(more) > config.tokens and "changed:" not in lines[place + 2]
    tokens = config.tokens * 2
    assert "  changed: epochs: 2.0 -> null" in plan(lasting(None, tokens), change=True).splitlines()
    with pytest.raises(
        ConfigError, match=r"epochs: 2\.0 -> 0\.1; tokens: (?s:.*)Give more epochs, or epochs=null and at"
    ):
        plan(lasting(0.1), change=True)


def test_a_complete_run_is_called_so(root: Path, tmp_path: Path) -> None:
    config = stage(root, tmp_path / "run")
    newest = begin(config, 10)
    assert f"The run is complete: {newest} is of step 10 of 10." in plan(config)


def test_other_documents_than_those_of_the_run(root: Path, tmp_path: Path) -> None:
    begin(stage(root, tmp_path / "run"), 5)
    other = stage(root, tmp_path / "run", mixture=[{"corpus": str(root / "other"), "name": "text"}])
    for change in (False, True):
        with pytest.raises(ConfigError, match="holds other documents than when this run was begun"):
            plan(other, change=change)


def test_the_model_that_a_run_began_with_may_be_gone(root: Path, tmp_path: Path) -> None:
    begin(stage(root, tmp_path / "run"), 5)
    gone = stage(root, tmp_path / "run", init_from=str(tmp_path / "gone"))
    assert "step 5 of 10." in plan(gone)
    check_early(gone, {}, False)


def damage(newest: Path) -> None:
    (newest / SIDECAR_DIRECTORY / "config.json").write_text("{}", encoding="utf-8")


def test_a_damaged_checkpoint(root: Path, tmp_path: Path) -> None:
    config = stage(root, tmp_path / "run")
    damage(begin(config, 5))
    for look in (plan, lambda config: check_early(config, {}, False)):
        with pytest.raises(CheckpointError, match="to begin the run again"):
            look(config)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"init_from": "no/model"}, CheckpointError, "no/model"),
        ({"mixture": [{"corpus": "no/corpus"}]}, DataError, "no/corpus"),
        ({"parallel": {"tensor": 8}}, ConfigError, "tensor"),
        ({"validation": {"corpora": [{"corpus": "no/held_out"}]}}, DataError, "no/held_out"),
        ({"samples": {"prompts": [{"text": "What?", "image": "no/picture.png"}]}}, ConfigError, "no/picture.png"),
    ],
)
@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, {"SLURM_NNODES": "1"}])
def test_what_one_host_refuses_at_once(
    changes: dict[str, Any],
    kind: type[AprielError],
    message: str,
    environment: dict[str, str],
    root: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(kind, match=message):
        check_early(stage(root, tmp_path / "run", **changes), environment, False)


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, {"SLURM_NTASKS": "2"}])
def test_several_hosts_look_when_they_have_met(environment: dict[str, str], root: Path, tmp_path: Path) -> None:
    check_early(stage(root, tmp_path / "run", init_from="no/model"), environment, False)


def test_too_little_room_for_a_checkpoint(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is looked at where the output will be, though nothing of it is there yet."""
    config, looked = stage(root, tmp_path / "not" / "there"), []
    needed = least_checkpoint_bytes(config, MODEL)

    def disk(free: int) -> None:
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr("shutil.disk_usage", lambda place: looked.append(Path(place)) or usage)

    disk(needed - 1)
    message = rf"at least {needed:,} bytes, and {tmp_path} has {needed - 1:,} bytes free"
    with pytest.raises(OutputError, match=message):
        check_early(config, {}, False)
    assert re.search(message, plan(config).replace("\n", " ")), "a dry run notes it; the disk may be another machine's"
    disk(needed)
    check_early(config, {}, False)
    assert "bytes free" not in plan(config)
    assert set(looked) == {tmp_path}


def test_what_a_broken_save_left_is_room(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = stage(root, tmp_path / "run")
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=0))
    left = partial_of(checkpoint_path(RunDirectory(config.output).checkpoints, 2))
    left.mkdir(parents=True)
    (left / "__0_0.distcp").write_bytes(bytes(least_checkpoint_bytes(config, MODEL)))
    check_room(config, MODEL)
    (left / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(OutputError, match="0 bytes free"):
        check_room(config, MODEL)


def test_weights_of_another_model(root: Path, tmp_path: Path) -> None:
    deeper = Architecture(DecoderArchitecture(32, 3, 2, 1, 16, 64, VOCAB))
    write_hf_checkpoint(tmp_path / "model", MODEL)
    write_json(tmp_path / "model" / "config.json", deeper.to_hf_config("float32"))
    with pytest.raises(CheckpointError, match="9 missing"):
        check_early(stage(root, tmp_path / "run", init_from=str(tmp_path / "model")), {}, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: {name: tensor[:-1] for name, tensor in tensors.items()},
            r"shape \[4095, 32\].*says \[4096, 32\]",
        ),
        (lambda tensors: {name: tensor.char() for name, tensor in tensors.items()}, "is stored as I8"),
    ],
)
def test_weights_of_other_shapes_and_dtypes(root: Path, tmp_path: Path, change: Any, message: str) -> None:
    """What headers tell is known before a run starts, and by a dry run."""
    from safetensors.torch import load_file, save_file

    write_hf_checkpoint(tmp_path / "model", MODEL)
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | change({name: tensors[name] for name in tensors if "embed" in name or "lm_head" in name}), file)
    config = stage(root, tmp_path / "run", init_from=str(tmp_path / "model"))
    with pytest.raises(CheckpointError, match=message):
        check_early(config, {}, False)
    with pytest.raises(CheckpointError, match=message):
        plan(config)


def test_a_start_is_refused_before_torch_is_loaded(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "stage.yaml"
    file.write_text(to_yaml(stage(root, tmp_path / "run", mixture=[{"corpus": "no/corpus"}])), encoding="utf-8")
    code = (
        "import sys\n"
        "from megatron_apriel.errors import run_command\n"
        "from megatron_apriel.train.command import main\n"
        "code = run_command(main)\n"
        "sys.exit(100 if 'torch' in sys.modules else code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.FAILED, done.stderr
    assert "no/corpus" in done.stderr
