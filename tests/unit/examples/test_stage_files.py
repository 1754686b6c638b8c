"""The stages' configurations: the recipe's hyper-parameters, valid at 8 and at 640 GPUs, chained without gaps."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from megatron_apriel.config.load import load_stage
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.checks import check_layout
from megatron_apriel.planning.dry_run import print_plan
from megatron_apriel.planning.memory import rank_memory

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
APRIEL = Architecture.from_preset("apriel-15b")

# What the paper states of each stage; None where it is silent.
RECIPE: dict[str, dict[str, Any]] = {
    "upscale": {"trains": {"decoder"}, "length": 8192, "peak": 5e-5, "decay": "linear", "keep": "equispaced 6"},
    "realign": {"trains": {"projector"}, "length": 8192, "peak": 5e-5, "decay": "linear"},
    "cpt_stage1": {
        "trains": {"tower", "projector", "decoder"},
        "length": 32768,
        "peak": 5e-5,
        "decay": "cosine",
        "warmup": 0.1,
        "keep": "equispaced 3",
    },
    "cpt_stage2": {
        "trains": {"projector", "decoder"},
        "length": 16384,
        "peak": 1e-5,
        "decay": "cosine",
        "warmup": 0.1,
    },
    "sft": {"trains": {"decoder"}, "length": 32768, "peak": 1e-5, "decay": "cosine"},
    "sft_subset": {"trains": {"decoder"}, "length": 32768},
    "sft_long": {"trains": {"decoder"}, "length": 49152},
}
OPEN_EVERYWHERE = ("batch_tokens", "tokens", "minimum", "betas", "weight_decay", "clip")
STARTS = {
    "upscale": "upscaled",
    "realign": "upscale/average",
    "cpt_stage1": "realign/final",
    "cpt_stage2": "cpt_stage1/average",
    "sft": "cpt_stage2/final",
    "sft_subset": "sft/final",
    "sft_long": "sft/final",
}


@pytest.fixture(autouse=True)
def _default_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUN_ROOT", "DATA_ROOT", "MODEL_ROOT"):
        monkeypatch.delenv(name, raising=False)


def load(name: str) -> StageConfig:
    return load_stage(EXAMPLES / f"{name}.yaml")


def test_every_stage_has_a_script_and_a_configuration() -> None:
    others = {"launch", "slurm_job", "tool", "submit_all", "evaluate"}
    scripts = {path.stem for path in EXAMPLES.glob("*.sh")} - others
    assert scripts == {path.stem for path in EXAMPLES.glob("*.yaml")} == set(RECIPE)
    for name in scripts:
        assert (EXAMPLES / f"{name}.sh").stat().st_mode & 0o111, f"examples/{name}.sh is not executable"


@pytest.mark.parametrize("name", RECIPE)
def test_hyper_parameters_are_the_recipes(name: str) -> None:
    config, stated = load(name), RECIPE[name]
    assert config.stage == name and config.output == Path("runs", name)
    assert set(config.trained_components) == stated["trains"]
    assert all(getattr(config.train, part) == 1 for part in stated["trains"])
    assert config.sequence_length == stated["length"]
    found = {"peak": config.optimizer.peak, "decay": config.optimizer.decay, "warmup": config.optimizer.warmup}
    assert {key: found[key] for key in found if key in stated} == {key: stated[key] for key in found if key in stated}
    assert "keep" not in stated or str(config.checkpoint.keep) == stated["keep"]


def test_mixtures_are_the_recipes() -> None:
    shares = {source.label: source.weight for source in load("cpt_stage1").mixture}
    assert shares == {"text": 0.5, "replay": 0.2, "multimodal": 0.3}
    assert {source.label: source.weight for source in load("upscale").mixture}["replay"] == 0.5
    for name in ("sft", "sft_subset", "sft_long", "realign"):
        assert {source.loss for source in load(name).mixture} == {"responses"}
    assert {source.loss for source in load("cpt_stage1").mixture + load("upscale").mixture} == {"all"}


@pytest.mark.parametrize("name", RECIPE)
def test_what_the_paper_does_not_state_is_marked(name: str) -> None:
    lines = (EXAMPLES / f"{name}.yaml").read_text().splitlines()
    open_here = [*OPEN_EVERYWHERE, *(key for key in ("peak", "decay", "warmup") if key not in RECIPE[name])]
    for key in open_here:
        number = next(index for index, line in enumerate(lines) if line.strip().startswith(f"{key}:"))
        above = []
        while lines[number - len(above) - 1].lstrip().startswith("#"):
            above.append(lines[number - len(above) - 1])
        assert "# assumption" in "\n".join([lines[number], *above]), f"{name}.yaml: {key}"


@pytest.mark.parametrize("name", RECIPE)
def test_stages_follow_one_another(name: str) -> None:
    assert load(name).init_from == Path("runs", STARTS[name])


@pytest.mark.parametrize("world_size", [8, 64, 640])
@pytest.mark.parametrize("name", RECIPE)
def test_dry_run(name: str, world_size: int) -> None:
    config, output = load(name), io.StringIO()
    print_plan(config, world_size, architecture="apriel-15b", console=Console(file=output, width=120))
    layout = check_layout(config, APRIEL, world_size)
    assert f"{layout.micro_batches(config.sequences_per_step)} " in output.getvalue()
    for stage in range(layout.pipeline):
        # 80 GB less what CUDA, NCCL and the allocator take.
        assert rank_memory(config, APRIEL, layout, stage).total < 80e9 - 6 * 2**30


@pytest.mark.parametrize("name", RECIPE)
def test_fp8_can_be_switched_on(name: str) -> None:
    config = load_stage(EXAMPLES / f"{name}.yaml", ["precision.fp8=tensorwise", "precision.bf16_layers_at_start=1"])
    assert check_layout(config, APRIEL, 640).data > 0


def test_quickstart_configurations_load() -> None:
    for path in sorted((EXAMPLES / "quickstart").glob("*.yaml")):
        load_stage(path)


@pytest.mark.parametrize(
    "path", [*sorted(EXAMPLES.rglob("*.sh")), *sorted((ROOT / "tools").glob("*.sh"))], ids=lambda path: path.name
)
def test_shell_scripts(path: Path) -> None:
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    beside = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert shellcheck, "shellcheck is part of the test extra"
    found = subprocess.run([shellcheck, "-x", path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
