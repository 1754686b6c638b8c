"""The commands that the scripts give, under Slurm and without: srun, sbatch and the interpreter are stand-ins.

Each stand-in writes its name, its arguments and the variables that matter to a log, and ends with the code that the
test asks for.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
STAGES = ("upscale", "realign", "cpt_stage1", "cpt_stage2", "sft", "sft_subset", "sft_long")

RECORD = """#!/usr/bin/env bash
{ printf '%s' "$(basename "$0")"; printf '\\t%s' "$@"; printf '\\n'; } >>"$FAKE_LOG"
"""
PROGRAMS = ("basename", "bash", "date", "dirname", "env", "grep", "head", "sed", "sleep", "wc")
"""Of this machine that the scripts and the stand-ins call. No other is in reach: a real Slurm is never asked."""
STAND_INS = {
    # The plan and the check of the interpreter succeed unless set otherwise; training ends with FAKE_CODE.
    "fakepython": """case "$*" in
        *--dry-run*) exit "${FAKE_PLAN_CODE:-0}" ;;
        -c*) exit 0 ;;
        *train*) exit "${FAKE_CODE:-0}" ;;
    esac""",
    "srun": '''printf 'env\\t%s\\t%s\\t%s\\t%s\\n' "${MASTER_ADDR:-}" "${MASTER_PORT:-}" "${RANK:-}${WORLD_SIZE:-}" \\
        "${SLURM_JOB_END_TIME:-}" >>"$FAKE_LOG"
        exit "${FAKE_CODE:-0}"''',
    "squeue": 'echo "${FAKE_END:-N/A}"',
    "scontrol": 'if [[ $1 == show ]]; then printf "node%s\\n" 1 2 3 4; fi',
    "sbatch": 'echo "$((1000 + $(grep -c ^sbatch "$FAKE_LOG")));cluster"',
    "apptainer": 'while [[ $1 != fakepython ]]; do shift; done; exec "$@"',
    "nvidia-smi": 'for ((i = 0; i < ${FAKE_GPUS:-0}; i++)); do echo "GPU $i"; done',
}


@dataclass
class Stage:
    """A directory of stand-ins, all that is on PATH, and the log they write."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str | Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        known = {key: os.environ[key] for key in ("HOME", "LANG") if key in os.environ}
        variables = {
            "PATH": str(self.directory),
            "FAKE_LOG": str(self.log),
            "PYTHON": "fakepython",
            **known,
            **self.environment,
        }
        finished = subprocess.run(
            [str(self.directory / "bash"), *map(str, command)],
            cwd=ROOT,
            env=variables | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == code, finished.stdout + finished.stderr
        return finished

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def calls(self, name: str) -> list[list[str]]:
        """Arguments of each call of a stand-in, in order."""
        lines = [line.split("\t") for line in self.log.read_text().splitlines()]
        return [words[1:] for words in lines if words[0] == name]


@pytest.fixture
def shell(tmp_path: Path) -> Stage:
    for name, body in STAND_INS.items():
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"{RECORD}{body}\n")
        script.chmod(0o755)
    for name in PROGRAMS:
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    stage = Stage(tmp_path / "bin", {"RUN_ROOT": str(tmp_path / "runs")})
    (tmp_path / "runs" / "upscaled").mkdir(parents=True)
    stage.log.touch()
    return stage


@pytest.fixture
def slurm(shell: Stage, tmp_path: Path) -> Stage:
    """As inside a batch job of four nodes with eight tasks each; scripts are copied away, as Slurm does."""
    shell.environment |= {
        "SLURM_JOB_ID": "54242", "SLURM_JOB_NUM_NODES": "4", "SLURM_NTASKS_PER_NODE": "8", "SLURM_CPUS_ON_NODE": "104",
        "SLURM_JOB_NODELIST": "node[1-4]", "SLURM_SUBMIT_DIR": str(ROOT),
    }  # fmt: skip
    (tmp_path / "spool").mkdir()
    return shell


def spooled(tmp_path: Path, name: str) -> Path:
    return Path(shutil.copy(ROOT / "examples" / f"{name}.sh", tmp_path / "spool" / "slurm_script"))


def training(stage: str, *overrides: str) -> list[str]:
    return ["-m", "megatron_apriel.train", f"examples/{stage}.yaml", *overrides]


@pytest.mark.parametrize("name", STAGES)
def test_one_process_without_slurm(shell: Stage, name: str) -> None:
    shell.run(f"examples/{name}.sh", "seed=7", "tokens=1B")
    check, plan, train = shell.calls("fakepython")
    assert check[0] == "-c"
    assert plan == [*training(name, "seed=7", "tokens=1B"), "--dry-run", "--world-size", "1", "--check-data"]
    assert train == training(name, "seed=7", "tokens=1B")
    assert not shell.calls("srun")


def test_all_gpus_of_a_machine(shell: Stage) -> None:
    shell.run("examples/sft.sh", FAKE_GPUS="4")
    assert shell.calls("fakepython")[-1] == [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", *training("sft"),
    ]  # fmt: skip
    assert shell.calls("fakepython")[-2][-3:] == ["--world-size", "4", "--check-data"]


def test_several_machines_without_slurm(shell: Stage) -> None:
    place = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "head", "MASTER_PORT": "2900", "NPROC_PER_NODE": "8"}
    shell.run("examples/sft.sh", **place)
    assert shell.calls("fakepython")[-1][2:] == [
        "--nnodes=2", "--node-rank=1", "--master-addr=head", "--master-port=2900", "--nproc-per-node=8",
        *training("sft"),
    ]  # fmt: skip
    del place["NODE_RANK"]
    finished = shell.run("examples/sft.sh", code=2, **place)
    assert "NNODES=2 without Slurm needs NODE_RANK, MASTER_ADDR and MASTER_PORT." in finished.stderr


@pytest.mark.parametrize("name", STAGES)
def test_under_slurm(slurm: Stage, tmp_path: Path, name: str) -> None:
    slurm.run(spooled(tmp_path, name), "tokens=1B")
    (srun,) = slurm.calls("srun")
    options, command = srun[: srun.index("bash")], srun[srun.index("fakepython") :]
    assert command == ["fakepython", *training(name, "tokens=1B")]
    assert srun[len(options) : -len(command)] == ["bash", "-c", 'trap "" USR1 TERM; exec "$@"', "rank"]
    assert {"--nodes=4", "--ntasks=32", "--ntasks-per-node=8", "--cpus-per-task=13"} <= set(options)
    assert {"--kill-on-bad-exit=0", "--export=ALL", "--wait=900"} <= set(options)
    assert not [word for word in options if word.startswith("--gpu")]  # ranks keep what Slurm gave them
    assert slurm.calls("scontrol") == [["show", "hostnames", "node[1-4]"]]
    ((host, port, *_),) = slurm.calls("env")
    assert host == "node1" and 20000 <= int(port) <= 32767
    assert slurm.calls("fakepython")[1][-3:] == ["--world-size", "32", "--check-data"]


def test_variables_of_another_run_do_no_harm(slurm: Stage, tmp_path: Path) -> None:
    slurm.run(spooled(tmp_path, "sft"), RANK="3", WORLD_SIZE="64", MASTER_ADDR="elsewhere", MASTER_PORT="23456")
    assert slurm.calls("env") == [["node1", "23456", "", ""]]
    assert slurm.calls("fakepython")[1][-3:] == ["--world-size", "32", "--check-data"]


def test_every_restart_meets_at_another_port(slurm: Stage, tmp_path: Path) -> None:
    for restart in range(5):
        slurm.run(spooled(tmp_path, "sft"), SLURM_RESTART_COUNT=str(restart))
    assert len({port for _, port, *_ in slurm.calls("env")}) == 5


def test_a_port_that_is_taken_is_not_chosen(slurm: Stage, tmp_path: Path) -> None:
    script = slurm.directory / "ports"
    script.write_text(f"source {ROOT}/examples/launch.sh\nfree_port\n")
    taken = int(slurm.run(script).stdout)
    # The same process id is not to be had again, so the choice is made to depend on nothing else.
    script.write_text(
        script.read_text().replace("free_port", "eval \"$(declare -f free_port | sed 's/[$][$]/0/')\"; free_port")
    )
    taken = int(slurm.run(script).stdout)
    assert int(slurm.run(script).stdout) == taken
    with socket.create_server(("127.0.0.1", taken)):
        other = int(slurm.run(script).stdout)
    assert other != taken


def test_the_end_of_the_job_is_asked_for_where_slurm_does_not_say_it(slurm: Stage, tmp_path: Path) -> None:
    script = spooled(tmp_path, "sft")
    slurm.run(script, FAKE_END="2031-01-02T03:04:05", TZ="UTC")
    slurm.run(script)
    slurm.run(script, SLURM_JOB_END_TIME="1234")
    assert [end for *_, end in slurm.calls("env")] == ["1925089445", "", "1234"]


def test_a_log_begins_with_job_nodes_restart_and_code(slurm: Stage, tmp_path: Path) -> None:
    finished = slurm.run(
        spooled(tmp_path, "sft"), SLURM_RESTART_COUNT="2", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="1"
    )
    first = finished.stdout.splitlines()[0]
    assert "job 54242 (7_1), restart 2, 4 x 8 ranks on node[1-4], code " in first


@pytest.mark.parametrize(
    ("code", "reason"), [(76, "the ranks did not meet"), (233, "could not start"), (137, "signal 9")]
)
def test_failures_that_may_pass_are_tried_again(slurm: Stage, tmp_path: Path, code: int, reason: str) -> None:
    finished = slurm.run(spooled(tmp_path, "sft"), code=code, FAKE_CODE=str(code), RETRY_AFTER="0")
    assert len(slurm.calls("srun")) == 3
    assert reason in finished.stdout and "attempt 3 of 3" in finished.stdout and "3 time(s) in a row" in finished.stderr
    assert ["requeue", "54242"] not in slurm.calls("scontrol")


@pytest.mark.parametrize("code", [1, 2, 130, 143])
def test_what_will_not_pass_is_not_tried_again(slurm: Stage, tmp_path: Path, code: int) -> None:
    slurm.run(spooled(tmp_path, "sft"), code=code, FAKE_CODE=str(code), RETRY_AFTER="0")
    assert len(slurm.calls("srun")) == 1


def test_requeue_only_where_the_run_asks_for_it(slurm: Stage, tmp_path: Path) -> None:
    slurm.run(spooled(tmp_path, "sft"), code=75, FAKE_CODE="75")
    assert slurm.calls("scontrol")[-1] == ["requeue", "54242"]
    slurm.log.write_text("")
    slurm.run(spooled(tmp_path, "sft"), code=1, FAKE_CODE="1")
    assert ["requeue", "54242"] not in slurm.calls("scontrol")


def test_a_stage_that_cannot_run_starts_nothing(slurm: Stage, tmp_path: Path) -> None:
    slurm.run(spooled(tmp_path, "sft"), code=1, FAKE_PLAN_CODE="1")
    assert not slurm.calls("srun")
    slurm.run(spooled(tmp_path, "sft"), FAKE_PLAN_CODE="1", SKIP_CHECK="1")
    assert len(slurm.calls("srun")) == 1


def test_exit_codes_without_slurm(shell: Stage) -> None:
    shell.run("examples/sft.sh", code=75, FAKE_CODE="75")
    assert not shell.calls("scontrol")


def test_pyxis(slurm: Stage, tmp_path: Path) -> None:
    slurm.run(
        spooled(tmp_path, "sft"), CONTAINER_IMAGE="registry/image:1", CONTAINER_MOUNTS="/a:/b", SRUN_ARGS="--label -v"
    )
    plan, train = slurm.calls("srun")
    mounts = f"--container-mounts={ROOT}:{ROOT},{tmp_path}/runs:{tmp_path}/runs,/a:/b"
    container = ["--container-image=registry/image:1", mounts, f"--container-workdir={ROOT}"]
    assert plan[:6] == ["--nodes=1", "--ntasks=1", "--export=ALL", *container]
    assert plan[-4:] == ["--dry-run", "--world-size", "32", "--check-data"]
    assert [word for word in train if word.startswith("--container")] == container
    assert {"--label", "-v"} <= set(train)
    assert train[train.index("fakepython") :] == ["fakepython", *training("sft")]
    assert train[train.index(container[-1]) + 1] == "bash"
    assert not slurm.calls("fakepython")


def test_apptainer(shell: Stage, slurm: Stage, tmp_path: Path) -> None:
    slurm.run(spooled(tmp_path, "sft"), CONTAINER_IMAGE="/images/x.sif")
    (srun,) = slurm.calls("srun")
    start = srun.index("apptainer")
    assert srun[start : start + 3] == ["apptainer", "exec", "--nv"] and "/images/x.sif" in srun
    assert srun[-4:] == ["fakepython", *training("sft")]
    for name in [key for key in slurm.environment if key.startswith("SLURM")]:
        del slurm.environment[name]
    shell.run("examples/sft.sh", CONTAINER_IMAGE="/images/x.sif")
    assert shell.calls("apptainer")[-1][-4:] == ["fakepython", *training("sft")]
    finished = shell.run("examples/sft.sh", code=2, CONTAINER_IMAGE="registry/image:1")
    assert "can be used here only as a .sif file" in finished.stderr


def test_upscale_deepens_the_source_first(shell: Stage, tmp_path: Path) -> None:
    (tmp_path / "runs" / "upscaled").rmdir()
    shell.run("examples/upscale.sh", SOURCE_MODEL="/models/pixtral")
    surgery = shell.calls("fakepython")[1]
    assert surgery == ["tools/upscale_layers.py", "/models/pixtral", f"{tmp_path}/runs/upscaled", "--num-layers", "48"]


def test_environment_is_checked(slurm: Stage, tmp_path: Path) -> None:
    script = spooled(tmp_path, "sft")
    assert "the interpreter nopython is not found." in slurm.run(script, code=2, PYTHON="nopython").stderr
    finished = slurm.run(script, code=2, SLURM_NTASKS_PER_NODE="")
    assert "the number of ranks a node is not known." in finished.stderr and "--gpus-per-node=8" in finished.stderr
    slurm.run(script, SLURM_NTASKS_PER_NODE="", SLURM_GPUS_ON_NODE="8")
    finished = slurm.run(script, code=2, NPROC_PER_NODE="eight")
    assert "NPROC_PER_NODE=eight is not a number of ranks." in finished.stderr
    assert "set PROJECT_ROOT" in slurm.run(script, code=2, SLURM_SUBMIT_DIR="/").stderr
    slurm.run(script, SLURM_SUBMIT_DIR="/", PROJECT_ROOT=str(ROOT))


def test_interpreter_without_the_packages(shell: Stage, tmp_path: Path) -> None:
    bare = shell.directory / "barepython"
    bare.write_text("#!/usr/bin/env bash\necho 'not installed: torch' >&2; exit 1\n")
    bare.chmod(0o755)
    finished = shell.run("examples/sft.sh", code=2, PYTHON="barepython")
    assert "barepython cannot run this project." in finished.stderr and "make setup" in finished.stderr


def test_dry_run_starts_nothing(slurm: Stage, tmp_path: Path) -> None:
    slurm.run(spooled(tmp_path, "sft"), "seed=1", DRY_RUN="1", WORLD_SIZE="640", ARCHITECTURE="apriel-15b")
    assert slurm.calls("fakepython")[-1] == [
        *training("sft", "seed=1"), "--dry-run", "--world-size", "640", "--architecture", "apriel-15b",
    ]  # fmt: skip
    assert not slurm.calls("srun")


def test_dry_run_with_the_real_interpreter(shell: Stage) -> None:
    import sys

    finished = shell.run(
        "examples/cpt_stage2.sh", PYTHON=sys.executable, DRY_RUN="1", WORLD_SIZE="640", ARCHITECTURE="apriel-15b"
    )
    assert "Dry run of stage cpt_stage2 on 640 ranks" in finished.stdout


def test_tools_run_once(slurm: Stage, tmp_path: Path) -> None:
    script = spooled(tmp_path, "tool")
    slurm.run(script, "tools/average_checkpoints.py", "out", "--run", "runs/x")
    assert slurm.calls("fakepython")[-1] == ["tools/average_checkpoints.py", "out", "--run", "runs/x"]
    assert not slurm.calls("srun")
    assert "there is no tool tools/none.py." in slurm.run(script, "tools/none.py", code=2).stderr


CHAIN = {
    "surgery": (),
    "upscale": ("surgery",),
    "average_upscale": ("upscale",),
    "realign": ("average_upscale",),
    "cpt_stage1": ("realign",),
    "average_cpt1": ("cpt_stage1",),
    "cpt_stage2": ("average_cpt1",),
    "sft": ("cpt_stage2",),
    "sft_subset": ("sft",),
    "sft_long": ("sft",),
    "release": ("sft_subset", "sft_long"),
}


def submitted(shell: Stage) -> dict[str, list[str]]:
    calls = shell.calls("sbatch")
    names = [next(word for word in call if word.startswith("--job-name=")).split("=")[1] for call in calls]
    return dict(zip(names, calls, strict=True))


def test_submit_all(shell: Stage, tmp_path: Path) -> None:
    (tmp_path / "runs" / "upscaled").rmdir()
    runs = tmp_path / "runs"
    finished = shell.run(
        "examples/submit_all.sh", "--nodes", "80", SOURCE_MODEL=str(tmp_path), CPU_SBATCH_ARGS="--partition=cpu -v"
    )
    jobs = submitted(shell)
    assert list(jobs) == list(CHAIN)
    ids = {name: 1000 + number for number, name in enumerate(CHAIN, start=1)}
    for name, before in CHAIN.items():
        dependency = [word for word in jobs[name] if word.startswith("--dependency")]
        expected = [f"--dependency=afterok:{':'.join(str(ids[step]) for step in before)}"] if before else []
        assert dependency == expected
        is_stage = name in STAGES
        assert ("--nodes=80" in jobs[name]) == is_stage
        assert ("--partition=cpu" in jobs[name]) != is_stage
        assert jobs[name][-1] == f"examples/{name}.sh" if is_stage else "examples/tool.sh" in jobs[name]
        assert f"{name:18} job {ids[name]}" in finished.stdout
    tool = {name: words[words.index("examples/tool.sh") + 1 :] for name, words in jobs.items() if name not in STAGES}
    assert tool == {
        "surgery": ["tools/upscale_layers.py", f"{tmp_path}", f"{runs}/upscaled", "--num-layers", "48"],
        "average_upscale": [
            "tools/average_checkpoints.py", f"{runs}/upscale/average", "--run", f"{runs}/upscale", "--equispaced", "6",
        ],
        "average_cpt1": [
            "tools/average_checkpoints.py", f"{runs}/cpt_stage1/average", "--run", f"{runs}/cpt_stage1",
            "--equispaced", "3",
        ],
        "release": [
            "tools/average_checkpoints.py", f"{runs}/release", "--checkpoints", f"{runs}/sft_subset/final",
            f"{runs}/sft_long/final",
        ],
    }  # fmt: skip


def test_submit_all_leaves_out_what_is_there(shell: Stage, tmp_path: Path) -> None:
    for product in ("upscale/final", "upscale/average", "realign/final"):
        (tmp_path / "runs" / product).mkdir(parents=True)
    finished = shell.run("examples/submit_all.sh")
    jobs = submitted(shell)
    assert list(jobs) == list(CHAIN)[4:]
    assert not [word for word in jobs["cpt_stage1"] if word.startswith("--dependency")]
    assert f"{tmp_path}/runs/realign/final is there already" in finished.stdout


def test_submit_all_dry_run(shell: Stage) -> None:
    finished = shell.run("examples/submit_all.sh", "--nodes=2", "--dry-run")
    assert not shell.log.read_text()
    assert "--dependency=afterok:<id of sft_subset>:<id of sft_long>" in finished.stdout
    assert len([line for line in finished.stdout.splitlines() if " sbatch --parsable " in line]) == len(CHAIN) - 1


def test_submit_all_without_slurm(shell: Stage) -> None:
    (shell.directory / "sbatch").unlink()
    refused = shell.run("examples/submit_all.sh", code=2)
    assert "sbatch is not found." in refused.stderr and "--local" in refused.stderr
    shell.run("examples/submit_all.sh", "--local")
    commands = [words for words in shell.calls("fakepython") if words[0] != "-c" and "--dry-run" not in words]
    order = [Path(words[2]).stem if words[0] == "-m" else Path(words[1]).parent.name for words in commands]
    assert order == [
        "upscale", "upscale", "realign", "cpt_stage1", "cpt_stage1", "cpt_stage2", "sft", "sft_subset", "sft_long",
        "runs",
    ]  # fmt: skip


def test_submit_all_local_stops_at_a_failure(shell: Stage) -> None:
    shell.run("examples/submit_all.sh", "--local", code=1, FAKE_CODE="1")
    stages = {words[2] for words in shell.calls("fakepython") if words[0] == "-m"}
    assert stages == {"examples/upscale.yaml"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "many"], "--nodes needs a number."),
        (["--nodes"], "--nodes needs a number."),
        (["--nodez=3"], "unknown argument --nodez=3."),
        (["--local", "--nodes", "3"], "--nodes goes with Slurm, not with --local."),
    ],
)
def test_submit_all_refuses(shell: Stage, arguments: list[str], message: str) -> None:
    assert message in shell.run("examples/submit_all.sh", *arguments, code=2).stderr
    assert not shell.calls("sbatch")


def test_submit_all_needs_the_source_model(shell: Stage, tmp_path: Path) -> None:
    (tmp_path / "runs" / "upscaled").rmdir()
    finished = shell.run("examples/submit_all.sh", code=2, MODEL_ROOT="/nowhere")
    assert "the model to begin with, /nowhere/pixtral-12b, does not exist." in finished.stderr


def test_nothing_of_one_cluster_stands_in_the_scripts() -> None:
    for path in (ROOT / "examples").glob("*.sh"):
        directives = [line for line in path.read_text().splitlines() if line.startswith("#SBATCH")]
        for word in ("--partition", "--account", "--nodelist", "--qos", "--chdir", "--time", "--mail"):
            assert not [line for line in directives if word in line], path
        if path.stem in STAGES:
            assert not [line for line in directives if "--nodes" in line], path
            assert {"#SBATCH --requeue", "#SBATCH --signal=USR1@300"} <= set(directives)
