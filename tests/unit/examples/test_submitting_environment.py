"""What a user's environment and place do to the chain's jobs: nothing that changes what they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from stand_ins import ROOT, STAGES, Stage, make, submitted


def test_from_another_directory_and_with_spaces(shell: Stage, tmp_path: Path) -> None:
    shell.environment["RUN_ROOT"] = str(tmp_path / "100% my runs")
    make(shell, "upscaled")
    shell.cwd = tmp_path
    shell.run(ROOT / "examples" / "submit_all.sh")
    words = submitted(shell)["average_upscale"]
    assert f"--output={tmp_path}/100%% my runs/logs/%x-%j.log" in words
    assert f"{tmp_path}/100% my runs/upscale/average" in words


def test_jobs_that_get_nothing_of_the_environment_get_what_the_scripts_read(shell: Stage) -> None:
    shell.run("examples/submit_all.sh", "--sbatch=--export=NONE", CONTAINER_IMAGE="", UNRELATED="x")
    (given,) = [word for word in submitted(shell)["sft"] if word.startswith("--export=")]
    assert {"PROJECT_ROOT", "RUN_ROOT", "DATA_ROOT", "PYTHON"} <= set(given.removeprefix("--export=").split(","))
    assert "UNRELATED" not in given and "NONE" not in given
    shell.log.write_text("")
    shell.run("examples/submit_all.sh", SBATCH_EXPORT="NONE")
    assert any(word.startswith("--export=PROJECT_ROOT,") for word in submitted(shell)["release"])


def test_variables_of_sbatch_do_not_change_what_the_chains_jobs_are(shell: Stage) -> None:
    sbatch = shell.directory / "sbatch"
    unwanted = "^SBATCH_(ARRAY_INX|WAIT|OPEN_MODE)="
    sbatch.write_text(f"{sbatch.read_text()}\nenv | grep -q -E '{unwanted}' && exit 1; exit 0\n")
    shell.run("examples/submit_all.sh", SBATCH_ARRAY_INX="1-2", SBATCH_WAIT="1", SBATCH_OPEN_MODE="truncate")
    assert len(shell.calls("sbatch")) == 10


@pytest.mark.parametrize("given", ["MINE,DATA_ROOT=/there", "RUN_ROOT"])
def test_jobs_that_get_a_few_variables_get_what_the_scripts_read_as_well(shell: Stage, given: str) -> None:
    """Else they would look for everything in other places than those that were checked."""
    for variables, words in (({"SBATCH_EXPORT": given}, []), ({}, [f"--sbatch=--export={given}"])):
        shell.log.write_text("")
        shell.run("examples/submit_all.sh", *words, **variables)
        for call in submitted(shell).values():
            (exported,) = [word.removeprefix("--export=") for word in call if word.startswith("--export=")]
            assert exported.startswith(f"{given},")
            names = [name.partition("=")[0] for name in exported.split(",")]
            assert {"PROJECT_ROOT", "RUN_ROOT", "DATA_ROOT"} <= set(names) and len(set(names)) == len(names)


@pytest.mark.parametrize("given", ["ALL", "ALL,MINE=1"])
def test_jobs_that_get_everything_are_left_alone(shell: Stage, given: str) -> None:
    shell.run("examples/submit_all.sh", SBATCH_EXPORT=given)
    assert not [word for call in submitted(shell).values() for word in call if word.startswith("--export")]


def test_tools_ask_for_no_gpus(shell: Stage) -> None:
    """Whatever a shell asks for in the name of all of its jobs."""
    wishes = {
        "SBATCH_GPUS": "8", "SBATCH_GPUS_PER_NODE": "4", "SBATCH_GPUS_PER_TASK": "1", "SBATCH_GRES": "gpu:4",
        "SBATCH_TRES_PER_TASK": "gres/gpu:1", "SBATCH_MEM_PER_GPU": "9G",
    }  # fmt: skip
    sbatch = shell.directory / "sbatch"
    line = 'printf \'asks %s %s\\n\' "$2" "$(env | grep -E \'^SBATCH_.*(GPU|gpu)\' | wc -l)" >>"$FAKE_LOG"\n'
    sbatch.write_text(sbatch.read_text().replace("count=", f"{line}count=", 1))
    shell.run("examples/submit_all.sh", SBATCH_PARTITION="fast", **wishes)
    asked = dict(line.split()[1:] for line in shell.log.read_text().splitlines() if line.startswith("asks"))
    assert asked == {f"--job-name={name}": "6" if name in STAGES else "0" for name in submitted(shell)}


def test_another_cluster_is_asked_only_where_jobs_are_there(shell: Stage) -> None:
    shell.run("examples/submit_all.sh")
    squeue = shell.directory / "squeue"
    squeue.write_text(f"{squeue.read_text()}\n[[ -z ${{SLURM_CLUSTERS:-}} ]]\n")
    shown = shell.run("examples/submit_all.sh", "--status", SLURM_CLUSTERS="blue").stdout
    assert "does not answer" not in shown


def test_options_for_the_tools_do_not_change_what_their_jobs_are(shell: Stage) -> None:
    for given in ("--job-name=mine", "--partition=cpu -o here.log", "--depend=singleton"):
        refused = shell.run("examples/submit_all.sh", code=2, CPU_SBATCH_ARGS=given)
        assert "CPU_SBATCH_ARGS: " in refused.stderr and "named, logged and ordered" in refused.stderr
    assert not shell.calls("sbatch")


def test_a_backslash_in_the_place_of_logs_is_refused(shell: Stage, tmp_path: Path) -> None:
    """sbatch would take it for a sign that the rest of the name is meant as it stands."""
    shell.environment["RUN_ROOT"] = str(tmp_path / "my\\runs")
    make(shell, "upscaled")
    assert "there is a backslash in" in shell.run("examples/submit_all.sh", code=2).stderr
    assert not shell.calls("sbatch")
