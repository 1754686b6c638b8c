"""What counts as a difference between two runs' records and weights, and what the checkouts take and leave."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks import miniature_runs, recorded_numbers, same_numbers
from benchmarks.miniature_runs import LAYOUTS, Run, Runner, quickstart_commands
from benchmarks.recorded_numbers import Comparison, compare
from megatron_apriel.config.load import load_stage
from megatron_apriel.errors import ConfigError

TENSORS = {"layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "norm": np.ones(3, dtype=np.float32)}
QUICKSTART = same_numbers.ROOT / "examples" / "quickstart"
STAGES = ["stage1", "realign", "cpt_stage1", "cpt_stage2", "sft", "sft_subset", "sft_long"]


def records() -> list[dict[str, Any]]:
    """Of a run of three steps that was resumed after the second."""

    def step(number: int, time: float) -> dict[str, Any]:
        return {
            "time": time, "kind": "step", "step": number, "steps": 3, "loss": 2.5 / number,
            "loss_by_source": {"text": 2.25 / number, "second images": 1e-5 * number},
            "gradient_norm": 1 / 3, "lr": 0.1, "tokens": 10 * number,
            "tokens_per_second": 100 / time, "seconds": time, "memory_gib": time,
        }  # fmt: skip

    def held_out() -> dict[str, Any]:
        return {"kind": "validation", "step": 3, "loss": 7.125, "loss_by_source": {"text": 7.125}}

    resumed = {"kind": "resumed", "step": 2, "path": "runs/x", "seconds": 4.5}
    return [step(1, 0.5), step(2, 0.25), step(3, 0.125), held_out(), resumed, step(3, 0.75), held_out()]


def write(directory: Path, lines: list[dict[str, Any]], tensors: dict[str, Any] | None = None) -> Path:
    final = directory / "final"
    final.mkdir(parents=True)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    save_file(TENSORS if tensors is None else tensors, final / "model.safetensors")
    return directory


def compared(tmp_path: Path, after: list[dict[str, Any]], before: list[dict[str, Any]] | None = None) -> Comparison:
    return compare(write(tmp_path / "before", before or records()), write(tmp_path / "after", after))


def test_the_same_numbers_at_another_speed_are_the_same(tmp_path: Path) -> None:
    after = records()
    for record in after:
        record.update({name: 9.5 for name in ("time", "seconds", "tokens_per_second", "memory_gib") if name in record})
        record.update({"path": "elsewhere"} if "path" in record else {})
    found = compared(tmp_path, after)
    assert (found.differences, found.one_sided) == ([], [])
    # Of a step: its number, that of all, loss, two by source, norm, rate, tokens; of the others what is left.
    assert (found.steps, found.numbers, found.tensors) == (4, 4 * 8 + 2 * 3 + 1, 2)


@pytest.mark.parametrize(
    ("place", "field"),
    [
        (1, "loss"),
        (1, "gradient_norm"),
        (0, "lr"),
        (2, "loss_by_source"),
        (3, "loss"),
        (3, "loss_by_source"),
        (5, "loss"),
    ],
)
def test_one_bit_is_a_difference(tmp_path: Path, place: int, field: str) -> None:
    after = records()
    value = after[place][field]
    holder, name = (value, "text") if isinstance(value, dict) else (after[place], field)
    old, new = holder[name], math.nextafter(holder[name], math.inf)
    holder[name] = new
    (difference,) = compared(tmp_path, after).differences
    kind = {3: "validation at step 3", 5: "step 3 again"}.get(place, f"step {place + 1}")
    assert difference.startswith(f"{kind}: {field}")
    assert difference.endswith(f"{old!r} before, {new!r} after")


def test_not_a_number_is_itself_and_zero_has_a_sign(tmp_path: Path) -> None:
    before, after = records(), records()
    before[0]["loss"] = after[0]["loss"] = math.nan
    before[1]["loss"], after[1]["loss"] = 0.0, -0.0
    assert compared(tmp_path, after, before).differences == ["step 2: loss 0.0 before, -0.0 after"]


@pytest.mark.parametrize("field", ["loss", "loss_by_source", "gradient_norm", "lr"])
def test_a_figure_that_must_be_there_cannot_go_missing(tmp_path: Path, field: str) -> None:
    after = records()
    del after[1][field]
    differences = compared(tmp_path, after).differences
    assert differences
    assert all(line.startswith(f"step 2: {field}") and line.endswith("recorded before only") for line in differences)


def test_a_figure_that_neither_has_proves_nothing(tmp_path: Path) -> None:
    before, after = records(), records()
    for lines in (before, after):
        del lines[3]["loss"]
    assert compared(tmp_path, after, before).differences == ["validation at step 3: no loss recorded"]


def test_a_renamed_field_is_compared_once_it_is_named(tmp_path: Path) -> None:
    after = [
        {"norm_of_step": record["gradient_norm"], **record, "gradient_norm": 0.5} if "lr" in record else record
        for record in records()
    ]
    before = write(tmp_path / "before", records())
    assert not compare(before, write(tmp_path / "same", after), {"gradient_norm": "norm_of_step"}).differences
    after[0]["norm_of_step"] = 1.0
    found = compare(before, write(tmp_path / "other", after), {"gradient_norm": "norm_of_step"})
    assert found.differences == [f"step 1: gradient_norm {1 / 3} before, 1.0 after"]


def test_what_versions_record_differently_is_named(tmp_path: Path) -> None:
    after = [*records(), {"kind": "evaluation", "step": 3, "accuracy": 0.5}]
    after[1]["clipped"] = 1
    del after[0]["tokens"]
    found = compared(tmp_path, after)
    assert not found.differences
    assert found.one_sided == [
        "step.tokens (before only)",
        "step.clipped (after only)",
        "record evaluation at step 3 (after only)",
    ]


def test_a_source_of_one_run_only_is_a_difference(tmp_path: Path) -> None:
    after = records()
    after[0]["loss_by_source"]["code"] = 1.0
    assert compared(tmp_path, after).differences == ["step 1: loss_by_source.code recorded after only"]


def test_commands_have_the_directory_where_their_list_has_a_variable(tmp_path: Path) -> None:
    """A list for people names the variable that a directory came from, not the directory."""
    script = tmp_path / "checkout" / "examples" / "quickstart" / "run.py"
    script.parent.mkdir(parents=True)
    script.write_text("print('python tool.py ${QUICKSTART}/model --other ${NO_SUCH_VARIABLE}')")
    (tmp_path / "checkout" / "megatron_apriel").mkdir()
    (tmp_path / "checkout" / "megatron_apriel" / "__init__.py").touch()
    expected = ["python", "tool.py", f"{tmp_path}/root/model", "--other", "${NO_SUCH_VARIABLE}"]
    assert quickstart_commands(tmp_path / "checkout", tmp_path / "root") == [expected]


def test_a_step_of_one_run_only_is_a_difference(tmp_path: Path) -> None:
    assert compared(tmp_path, records()[:-2]).differences == [
        "step 3 again: recorded before only",
        "validation at step 3 again: recorded before only",
    ]


def test_runs_without_records_are_not_the_same(tmp_path: Path) -> None:
    nothing = ["step: no record to compare", "validation: no record to compare"]
    only_resumed = records()[4:5]
    assert compared(tmp_path, only_resumed, only_resumed).differences == nothing
    for side in ("before", "after"):
        (tmp_path / side / "metrics.jsonl").unlink()
    assert compare(tmp_path / "before", tmp_path / "after").differences == nothing


def test_one_bit_of_a_tensor_is_a_difference(tmp_path: Path) -> None:
    changed = {name: tensor.copy() for name, tensor in TENSORS.items()}
    changed["norm"][1] = np.nextafter(changed["norm"][1], np.float32(2))
    found = compare(write(tmp_path / "a", records()), write(tmp_path / "b", records(), changed))
    (difference,) = found.differences
    assert difference.startswith("export: 1 of 2 tensors, first norm; SHA-256 ")


@pytest.mark.parametrize("other", [np.float16, np.float64])
def test_another_type_is_a_difference(tmp_path: Path, other: Any) -> None:
    changed = {name: tensor.astype(other) for name, tensor in TENSORS.items()}
    found = compare(write(tmp_path / "a", records()), write(tmp_path / "b", records(), changed))
    assert found.differences[0].startswith("export: 2 of 2 tensors, first layer.weight")


def test_tensors_may_lie_in_other_files(tmp_path: Path) -> None:
    before, after = write(tmp_path / "a", records()), write(tmp_path / "b", records())
    (after / "final" / "model.safetensors").unlink()
    for name, tensor in TENSORS.items():
        save_file({name: tensor}, after / "final" / f"model-{name}.safetensors", metadata={"format": "pt"})
    found = compare(before, after)
    assert (found.differences, found.tensors) == ([], 2)
    expected = hashlib.sha256(b"F32 [3] " + TENSORS["norm"].tobytes()).hexdigest()
    assert recorded_numbers.weights(after / "final")["norm"] == expected


def test_tensors_and_exports_cannot_go_missing(tmp_path: Path) -> None:
    before = write(tmp_path / "a", records())
    fewer = write(tmp_path / "b", records(), {"norm": TENSORS["norm"]})
    assert compare(before, fewer).differences == ["export: layer.weight is there before only"]
    (fewer / "final" / "model.safetensors").unlink()
    assert compare(before, fewer).differences == ["export: no tensor to compare, 2 before and 0 after"]


@pytest.mark.parametrize(
    ("differences", "code", "said"),
    [
        ([], 0, "all 8 numbers and 2 exported tensors of 1 runs are the same"),
        (["step 2: loss [x] 1.0 before, 2.0 after"], 1, "1 of 1 runs differ"),
        (None, 1, "0 of 0 runs differ"),
    ],
)
def test_the_table_and_the_exit_code(
    capsys: pytest.CaptureFixture[str], differences: list[str] | None, code: int, said: str
) -> None:
    found = [] if differences is None else [(Run("2-ranks", "sft", "DP2"), Comparison(1, 8, 2, differences, ["a.b"]))]
    assert same_numbers.show(found, {}) == code
    shown = capsys.readouterr().out
    assert said in shown
    assert all(line in shown for line in differences or [])
    assert ("not compared: a.b" in shown) == bool(found)


def test_every_stage_runs_on_one_rank_and_on_two_and_every_layout_runs() -> None:
    runs = [run for chain in miniature_runs.runs_of(STAGES).values() for run in chain]
    assert {(run.stage, run.ranks) for run in runs} == {(stage, ranks) for stage in STAGES for ranks in (1, 2)}
    assert {run.layout for run in runs} | {run.resumed for run in runs if run.resumed} == set(LAYOUTS)
    resumed = [(run.ranks, LAYOUTS[run.resumed].ranks) for run in runs if run.resumed]
    assert resumed == [(2, 2)]
    assert len({run.output for run in runs}) == len(runs)


def test_the_plan_names_stages_of_the_quickstart() -> None:
    assert {file.stem for file in QUICKSTART.glob("*.yaml")} == set(STAGES)
    with_another = {stage for chain in miniature_runs.CHAINS.values() for stage in chain.others}
    assert {miniature_runs.RESUMED, *with_another} <= set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_shortened_to_whole_steps_of_both_ranks(stage: str, tmp_path: Path) -> None:
    """By the schema: the settings are understood, and rates, data and what trains stay as they are."""
    file = QUICKSTART / f"{stage}.yaml"
    command = miniature_runs.training(file, tmp_path / stage, 2, "TP2 SP")
    short, full = load_stage(file, command[command.index(str(file)) + 1 :]), load_stage(file, [])
    assert short.steps == miniature_runs.STEPS
    assert short.sequences_per_step % 2 == 0
    assert (short.parallel.tensor, short.parallel.sequence) == (2, True)
    assert (short.logging.every, short.checkpoint.every) == (1, 2)
    assert short.output == tmp_path / stage
    for name in ("stage", "train", "sequence_length", "mixture", "optimizer", "seed", "precision", "images"):
        assert getattr(short, name) == getattr(full, name)


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=x", "-c", "user.email=x"]
    done = subprocess.run(["git", "-C", directory, *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "--quiet")
    for name, text in ((".gitignore", "ignored\n"), ("kept", "old"), ("removed", "old")):
        (root / name).write_text(text)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "-m", "first")
    monkeypatch.setattr(same_numbers, "ROOT", root)
    return root


def files(directory: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in directory.iterdir() if file.name != ".git"}


def test_the_working_tree_is_taken_as_it_stands(repository: Path) -> None:
    (repository / "kept").write_text("new")
    (repository / "removed").unlink()
    (repository / "added").write_text("new")
    (repository / "ignored").write_text("new")
    status = git(repository, "status", "--porcelain")
    tree = same_numbers.working_tree()
    (repository / "kept").write_text("later")
    with same_numbers.checked_out(tree) as new, same_numbers.checked_out(same_numbers.commit("HEAD")) as old:
        assert files(new) == {".gitignore": "ignored\n", "kept": "new", "added": "new"}
        assert files(old) == {".gitignore": "ignored\n", "kept": "old", "removed": "old"}
    assert git(repository, "status", "--porcelain") == status
    assert not new.exists()
    assert not old.exists()


def test_checkouts_are_removed_when_interrupted(repository: Path) -> None:
    with pytest.raises(KeyboardInterrupt), same_numbers.checked_out(same_numbers.commit("HEAD")) as checkout:
        (checkout / "made by a run").write_text("x")
        raise KeyboardInterrupt
    assert not checkout.parent.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1


@pytest.mark.parametrize("name", ["nothing", "--help", "HEAD:kept"])
def test_what_is_no_commit_is_refused(repository: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no commit"):
        same_numbers.commit(name)


def test_a_failed_command_ends_the_others(tmp_path: Path) -> None:
    runner, environment = Runner(tmp_path), {"PYTHONPATH": str(tmp_path)}
    waiting = partial(runner.run, "waits", [sys.executable, "-c", "import time; time.sleep(99)"], environment)
    failing = partial(runner.run, "fails", [sys.executable, "-c", "raise SystemExit('why it failed')"], environment)
    with pytest.raises(ConfigError, match=r"exit code 1[^$]*why it failed"):
        miniature_runs.at_once(runner, [waiting, failing])
    with pytest.raises(ConfigError, match="not started"):
        failing()
