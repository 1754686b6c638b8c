"""tools/plan.py: what it ranks, what it says where nothing fits, and that its answer can be used as it stands."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_apriel.config.load import load_stage
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import ConfigError, OutputError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.checks import check_layout
from megatron_apriel.planning.certainty import signs
from megatron_apriel.planning.hardware import KINDS, Hardware, hardware, hardware_yaml
from megatron_apriel.planning.layouts import GIB, Candidates, candidates
from megatron_apriel.planning.memory import rank_memory
from megatron_apriel.planning.step_time import step_time
from megatron_apriel.planning.workload import Workload
from megatron_apriel.quantities import three_digits
from megatron_apriel.testing.scripts import load_script

ROOT = Path(__file__).resolve().parents[3]
STAGE = ROOT / "examples" / "cpt_stage1.yaml"
APRIEL = Architecture.from_preset("apriel-15b")
WORDS = ["--stage", str(STAGE), "--architecture", "apriel-15b"]


PLAN = load_script("tools/plan.py")


def found(gpus: int, gpu: str = "h100", settings: tuple[str, ...] = (), **numbers: Any) -> Candidates:
    config = load_stage(STAGE, settings)
    return candidates(config, APRIEL, gpus, KINDS[gpu].model_copy(update=numbers), Workload.of(config))


def test_every_layout_is_predicted_by_the_same_rules() -> None:
    everything = found(64)
    assert len(everything.accepted) > 50
    for candidate in everything.accepted[::17]:
        layout = check_layout(candidate.config, APRIEL, 64)
        assert layout == candidate.layout
        totals = [rank_memory(candidate.config, APRIEL, layout, rank).total for rank in range(layout.pipeline)]
        assert candidate.memory.total == max(totals) == totals[candidate.fullest_stage]
        work = Workload.of(candidate.config)
        assert candidate.time == step_time(candidate.config, APRIEL, layout, KINDS["h100"], work)
        assert candidate.over == max(totals) - (79.6 - 6) * GIB
        sequences = candidate.config.sequences_per_step
        assert candidate.gpu_hours == pytest.approx(candidate.config.steps * candidate.time.total * 64 / 3600)
        assert candidate.tokens_per_second == pytest.approx(sequences * 32768 / candidate.time.total / 64)


def test_order_and_one_row_for_each_layout() -> None:
    everything = found(64)
    fitting, missing = everything.fitting(), everything.missing()
    times = [candidate.time.total for candidate in fitting]
    assert times == sorted(times) and all(candidate.over <= 0 for candidate in fitting)
    assert times[0] == min(candidate.time.total for candidate in everything.accepted if candidate.over <= 0)
    misses = [candidate.over for candidate in missing]
    assert misses == sorted(misses) and min(misses) > 0
    labels = [candidate.label for candidate in (*fitting, *missing)]
    assert len(labels) == len(set(labels)) and {*labels} == {candidate.label for candidate in everything.accepted}


def test_tensor_parallelism_stays_in_a_node() -> None:
    assert {candidate.layout.tensor for candidate in found(64, gpus_per_node=4).accepted} == {1, 2, 4}
    # Four ranks in a row of such nodes would stand on two of them.
    assert {candidate.layout.tensor for candidate in found(48, gpus_per_node=6).accepted} == {1, 2}
    assert {candidate.layout.tensor for candidate in found(4, gpus_per_node=6).accepted} == {1, 2, 4}


def test_what_cannot_run_is_kept_with_its_reason() -> None:
    """160 sequences a step: 64 replicas cannot share them, 32 can."""
    reasons = {label: str(error) for label, error in found(64).refused}
    assert "160 sequences per step" in reasons["TP1 CP1 PP1 VP1"]
    assert "TP2 CP1 PP1 VP1" not in reasons


def test_a_split_by_load_is_taken_where_it_is_faster() -> None:
    by_label = {(one.label, one.config.recompute.mode): one for one in found(64).accepted}
    chosen = by_label["TP1 CP1 PP4 VP1", "selective"]
    assert sum(chosen.layers) == 48 and chosen.layers[-1] < 12
    parallel = chosen.config.parallel.model_copy(update={"layers_per_stage": None})
    even = chosen.config.model_copy(update={"parallel": parallel})
    layout = check_layout(even, APRIEL, 64)
    assert chosen.time.total < step_time(even, APRIEL, layout, KINDS["h100"], Workload.of(even)).total


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "plan.json"
    assert PLAN.main([*WORDS, "--gpus", "640", "--gpu", "h100", "--top", "4", "--json", str(output)]) == 0
    text = capsys.readouterr().out
    assert "cpt_stage1 on 640 H100 with 73.6 GiB each to use, fp8=none, " in text
    assert "documents of 32,768 tokens, 15% image tokens" in text
    best = found(640).fitting()[0]
    assert f"The fastest, {three_digits(best.gpu_hours)} GPU-hours for 19,074 steps:" in text
    assert text.split("┡", 1)[1].split("└", 1)[0].count("\n│") == 4
    assert "each one packed sequence" in text
    assert "│ ? knls │" in text and "sure: k, no step on these GPUs was measured, only on H200" in text
    records = json.loads(output.read_text())
    fastest = next(record for record in records if record["fits"])
    assert fastest["doubts"] == [doubt.name.lower() for doubt in best.doubts] and "links" in fastest["doubts"]
    assert fastest["gpu_hours"] == best.gpu_hours and fastest["recompute"] == best.config.recompute.mode
    assert [record["step_seconds"]["total"] for record in records] == sorted(
        record["step_seconds"]["total"] for record in records
    )


@pytest.mark.parametrize("settings", [[], ["precision.fp8=tensorwise"], ["parallel.overlap=false"]])
def test_the_printed_layout_runs_as_it_is_pasted(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = found(320, settings=tuple(settings)).fitting()[0]
    assert PLAN.main([*WORDS, "--gpus", "320", "--gpu", "h100", *settings]) == 0
    printed, _, words = capsys.readouterr().out.partition("steps:\n\n")[2].partition("\n\nand in the file's own")
    settings = [*settings, *words.partition(": ")[2].split()]
    kept = [line for line in STAGE.read_text().splitlines() if not line.startswith(("parallel:", "recompute:"))]
    pasted = tmp_path / "stage.yaml"
    pasted.write_text("\n".join([*kept, printed]))
    config = load_stage(pasted, settings)
    assert (config.parallel, config.recompute) == (best.config.parallel, best.config.recompute)
    assert config.precision.fp8_weights == best.config.precision.fp8_weights
    assert check_layout(config, APRIEL, 320) == best.layout


@pytest.mark.parametrize("gpus", [1, 2, 12])
@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("parallel={tensor: 2, sequence: true, tensor_overlap: true, dealing: evenly}",),
        ("checkpoint.background=true",),
        ("precision.fp8=blockwise", "precision.bf16_layers_at_start=2"),
        ("optimizer.moments=auto", "optimizer.master=24bit", "optimizer.gradients=24bit"),
    ],
)
def test_a_stage_may_say_whatever_is_offered(gpus: int, settings: tuple[str, ...]) -> None:
    given = load_stage(STAGE, settings).parallel
    offered = found(gpus, "h200", settings).accepted
    assert offered
    for candidate in offered:
        stage = StageConfig.model_validate(candidate.config.model_dump(mode="json"))
        assert stage == candidate.config
        assert check_layout(stage, APRIEL, gpus) == candidate.layout
        assert (stage.parallel.dealing, stage.parallel.overlap) == (given.dealing, given.overlap)
        assert stage.parallel.tensor_overlap == (given.tensor_overlap and candidate.layout.tensor > 1)


def test_what_a_plan_does_not_choose_stays_in_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["parallel.tensor_overlap=true", "parallel.dealing=evenly", "parallel.overlap=false"]
    assert PLAN.main([*WORDS, "--gpus", "16", "--gpu", "h100", *words]) == 0
    printed = capsys.readouterr().out.partition("steps:\n\n")[2].partition("\n\n")[0]
    kept = [line for line in STAGE.read_text().splitlines() if not line.startswith(("parallel:", "recompute:"))]
    pasted = tmp_path / "stage.yaml"
    pasted.write_text("\n".join([*kept, printed]))
    parallel = load_stage(pasted).parallel
    assert parallel.tensor > 1
    assert (parallel.tensor_overlap, parallel.dealing, parallel.overlap) == (True, "evenly", False)


def test_a_layout_that_does_not_fit_says_by_how_much(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        PLAN.main([*WORDS, "--gpus", "1", "--gpu", "h100"])
    nearest = found(1).missing()[0]
    over = f"{nearest.memory.host / GIB - 104:.1f} GiB"
    assert f"fits 1 H100: the nearest, TP1 CP1 PP1 VP1 with recompute.mode=full, is over by {over}" in str(caught.value)
    assert "138.4 GiB of 104.0 GiB of the host" in str(caught.value) and "more GPUs" in str(caught.value)
    assert "gradients 55.4 GiB" in str(caught.value) and "host_memory" not in str(caught.value)
    assert over in capsys.readouterr().out


@pytest.mark.parametrize("name", ["upscale", "realign", "cpt_stage1", "cpt_stage2", "sft", "sft_subset", "sft_long"])
def test_every_stage_at_full_size_on_one_gpu(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, fp8 = ROOT / "examples" / f"{name}.yaml", "precision.fp8=tensorwise"
    words = ["--stage", str(file), "--architecture", "apriel-15b", "--gpus", "1", "--set", "host_memory=128"]
    assert PLAN.main([*words, fp8]) == 0
    text = capsys.readouterr().out
    assert "predicted, nothing measured" in text
    printed, _, settings = text.partition("steps:\n\n")[2].partition("\n\n")
    kept = [line for line in file.read_text().splitlines() if not line.startswith(("parallel:", "recompute:"))]
    pasted = tmp_path / "stage.yaml"
    pasted.write_text("\n".join([*kept, printed]))
    config = load_stage(pasted, [fp8, *settings.partition(": ")[2].split()])
    memory = rank_memory(config, APRIEL, check_layout(config, APRIEL, 1), 0, KINDS["h200"].available)
    assert memory.total <= KINDS["h200"].available + 1 and memory.host <= 128 * GIB
    assert (memory.host > 0) == (name != "realign")


def test_without_a_stage_the_whole_recipe_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    """By the files for one GPU where it is one; each row is what the stage's own plan says is fastest."""
    assert PLAN.main(["--gpus", "1", "--set", "host_memory=60"]) == 1
    said = capsys.readouterr().out
    assert "over by" in said and said.count(" bfloat16 ") > 1 and "The stages in examples/one_gpu of" in said
    assert PLAN.main(["--gpus", "1"]) == 0
    rows = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if line.startswith("│ ")}
    files = sorted((ROOT / "examples" / "one_gpu").glob("*.yaml"))
    assert {path.stem for path in files} <= rows.keys()
    assert list(rows).index("upscale") < list(rows).index("realign") < list(rows).index("sft")
    for path in files[:3]:
        config = load_stage(path)
        best = candidates(config, APRIEL, 1, KINDS["h200"], Workload.of(config)).fitting()[0]
        assert f" {best.config.optimizer.moments} " in rows[path.stem]
        assert f" {three_digits(best.tokens_per_second)} " in rows[path.stem]
        assert f"│ {signs(best.doubts)} │" in re.sub(" +", " ", rows[path.stem])
        assert f" {config.sequence_length:,} " in rows[path.stem] and config.precision.fp8 in rows[path.stem]


def test_settings_and_gpus_count_for_every_stage_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    """Seventeen GPUs divide neither any stage's sequences nor its layers."""
    assert PLAN.main(["--gpus", "17", "precision.fp8=delayed", "parallel.overlap=false"]) == 1
    said = capsys.readouterr().out
    assert "The stages in examples of apriel-15b on 17 H200 with 133.0 GiB each to use" in said
    assert said.count("delayed") == 7
    assert said.count("no layout can run") == 7


@pytest.mark.parametrize("option", [["--json", "plans.json"], ["--show-refused"], ["--compare-states"]])
def test_what_is_for_one_stage(option: list[str], tmp_path: Path) -> None:
    words = [str(tmp_path / word) if word.endswith(".json") else word for word in option]
    with pytest.raises(ConfigError, match=f"{option[0]} is for one stage(?s:.*)The whole recipe is planned otherwise"):
        PLAN.main(["--gpus", "1", *words])


def test_gpus_must_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        PLAN.main(["--stage", str(STAGE)])
    assert (
        "python tools/plan.py --gpus 8 --stage examples/sft.yaml --architecture apriel-15b" in capsys.readouterr().err
    )


def test_gpus_that_do_not_divide_the_batch(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        PLAN.main([*WORDS, "--gpus", "17", "--show-refused"])
    assert "no layout of this stage can run on 17 GPUs" in str(caught.value)
    assert "160 sequences per step" in str(caught.value) and "Set batch_tokens to a multiple" in str(caught.value)
    assert "TP1 CP1 PP1 VP1: 160 sequences per step" in capsys.readouterr().out


def test_odd_numbers_of_gpus_become_stages() -> None:
    """Five GPUs can hold a fifth of the layers each; or all of them, where layers' inputs wait on the host."""
    fitting = found(5, "h200").fitting()
    assert {(one.layout.pipeline, one.config.recompute.inputs) for one in fitting} == {(1, "host"), (5, "gpu")}
    assert sum(found(7, "h200").fitting()[0].layers) == 48


def test_hardware_numbers_can_be_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert PLAN.main(["--gpu", "h100", "--set", "inter_node=25", "--print-hardware"]) == 0
    file = tmp_path / "hardware.yaml"
    file.write_text(capsys.readouterr().out)
    assert hardware("h200", file) == KINDS["h100"].model_copy(update={"inter_node": 25.0})
    assert hardware("h200", file, ["inter_node=12.5"]).inter_node == 12.5
    for name in Hardware.model_fields:
        assert f"\n{name}: " in f"\n{hardware_yaml(KINDS['h200'])}\n"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("inter_node", "no value"),
        ("inter_nod=25", "inter_nod"),
        ("memory=-3", "must be at least 1e-06"),
        ("memory=1e308", "must be at most 1000000000"),
        ("copy_bandwidth=1e-300", "must be at least 1e-06"),
        ("latency=1e300", "must be at most 1000000000"),
        ("head=x", "number"),
    ],
)
def test_wrong_hardware_numbers(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hardware("h200", settings=[setting])


def test_a_reserve_that_leaves_nothing() -> None:
    with pytest.raises(ConfigError, match="reserve=6 GiB leaves nothing of memory=4 GiB"):
        hardware("h200", settings=["memory=4"])


def test_a_missing_hardware_file_is_not_taken_for_a_stage(tmp_path: Path) -> None:
    for place in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError) as caught:
            hardware("h200", place)
        assert "Hardware is described by" in str(caught.value) and "--print-hardware" in str(caught.value)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("parallel.tensor=4", "parallel.tensor=4 would be replaced."),
        ("parallel={tensor: 4}", "would be replaced."),
        ("recompute.mode=full", "recompute.mode=full would be replaced."),
        ("precision.compute=fp32", "precision.compute=fp32 is not predicted."),
    ],
)
def test_settings_that_a_plan_cannot_take(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        PLAN.main([*WORDS, "--gpus", "64", word])


def test_images_for_a_model_of_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(Architecture(APRIEL.decoder).to_hf_config()))
    words = ["--stage", str(STAGE), "--gpus", "64", f"init_from={tmp_path}", "train={decoder: 1}"]
    with pytest.raises(ConfigError, match=r"--images-share 0.5: the model of .* is text only"):
        PLAN.main([*words, "--images-share", "50%"])


def test_what_the_json_may_not_replace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Known before anything is predicted; a directory that is missing is made, as for every output."""
    stage, hardware_file, output = tmp_path / "stage.yaml", tmp_path / "node.yaml", tmp_path / "new" / "plan.json"
    stage.write_bytes(STAGE.read_bytes())
    hardware_file.write_text("inter_node: 25\n")
    words = ["--gpus", "64", "--stage", str(stage), *WORDS[2:], "--hardware", str(hardware_file), "--json"]
    assert PLAN.main([*words, str(output)]) == 0
    written = output.read_bytes()
    capsys.readouterr()
    for path, more, message in (
        (output, [], r"plan\.json exists\.(?s:.*)or --overwrite to replace it"),
        (output / "plan.json", [], "is a file"),
        (tmp_path, ["--overwrite"], "is no file"),
        (stage, ["--overwrite"], "is the input"),
        (hardware_file, ["--overwrite"], "is the input"),
    ):
        with pytest.raises(OutputError, match=message):
            PLAN.main([*words, str(path), *more])
    assert capsys.readouterr().out == "" and output.read_bytes() == written
    assert PLAN.main([*words, str(output), "--overwrite", "--set", "inter_node=50"]) == 0
    assert output.read_bytes() != written


def test_no_torch() -> None:
    """As on a login node."""
    words = [str(ROOT / "tools" / "plan.py"), *WORDS, "--gpus", "64"]
    program = (
        "import runpy, sys; sys.modules.update(dict.fromkeys(('torch', 'megatron', 'transformers')));"
        f" sys.argv = {words!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "GPU-hours" in finished.stdout


def commands_of_the_guide() -> list[str]:
    text = (ROOT / "docs" / "layouts.md").read_text(encoding="utf-8")
    assert text.count("```bash") == text.count("<!-- run -->\n```bash"), "a block without its mark"
    text += (ROOT / "docs" / "one_gpu.md").read_text(encoding="utf-8")
    found = re.findall(r"<!-- run -->\n```bash\n(.*?)```", text, re.DOTALL)
    return [block.replace("\\\n", " ").strip() for block in found]


@pytest.mark.parametrize("command", commands_of_the_guide())
def test_commands_of_the_guide_run(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    program, script, *words = shlex.split(command)
    assert (program, script) == ("python", "tools/plan.py")
    assert PLAN.main(words) == 0
    assert "GPU-hours for" in capsys.readouterr().out or "--print-hardware" in words


def test_what_epochs_cost_is_not_known_to_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "plan.json"
    words = [*WORDS, "--gpus", "320", "--top", "1", "--json", str(output), "tokens=null", "epochs=2"]
    assert PLAN.main(words) == 0
    text = capsys.readouterr().out
    assert "GPU-hours are not known: epochs=2 become steps only with the corpora" in text
    assert "not known" in text.partition("└")[0] and "The fastest:" in text
    assert {record["gpu_hours"] for record in json.loads(output.read_text())} == {None}


def test_a_small_model_is_not_shown_as_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(Architecture.from_preset("tiny").to_hf_config()))
    settings = [f"init_from={tmp_path}", "sequence_length=128", "batch_tokens=512", "tokens=1024", "parallel={}"]
    stage = tmp_path / "stage.yaml"
    kept = [line for line in STAGE.read_text().splitlines() if not line.startswith(("parallel:", "recompute:"))]
    stage.write_text("\n".join(kept))
    assert PLAN.main(["--stage", str(stage), "--gpus", "1", *settings[:-1], "checkpoint.keep=last 1"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│  1 ")][:1]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert re.fullmatch(r"[1-9][0-9.]* [KM]iB", cells[8])
    assert all(re.search(r"[1-9]", cell) for cell in cells[9:12])
