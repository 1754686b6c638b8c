"""The commands that the scripts give, under Slurm and without: srun, sbatch and the interpreter are stand-ins."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from stand_ins import ROOT, STAGES, Stage, spooled, wait_until


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


def test_a_driver_that_does_not_answer(shell: Stage) -> None:
    """It would keep the script waiting; and one rank for all that there may be is not what was meant."""
    said = shell.run("examples/sft.sh", code=2, FAKE_HANG="1000", GPU_WAIT="1").stderr
    assert "nvidia-smi did not answer within 1 s." in said and "NPROC_PER_NODE" in said
    assert not shell.calls("fakepython")
    assert "GPU_WAIT=long is not" in shell.run("examples/sft.sh", code=2, GPU_WAIT="long").stderr
    shell.run("examples/sft.sh", FAKE_HANG="1000", GPU_WAIT="1", NPROC_PER_NODE="4")
    assert "--nproc-per-node=4" in shell.calls("fakepython")[-1]


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
    ((host, port, *_),) = slurm.calls("env")
    assert host == "" and 20000 <= int(port) <= 32760
    assert not slurm.calls("scontrol")  # which sites take away from the nodes
    assert slurm.calls("fakepython")[1][-3:] == ["--world-size", "32", "--check-data"]


@pytest.mark.parametrize("name", ["sft", "tool"])
def test_the_warning_does_not_end_the_script(slurm: Stage, tmp_path: Path, name: str) -> None:
    """It reaches the script, and not only the ranks, with ``--signal=B:USR1@300``."""
    plan = slurm.directory / "fakepython"
    plan.write_text("#!/usr/bin/env bash\n[[ $* == *find_spec* ]] || kill -USR1 $PPID $$\n")
    slurm.run(spooled(tmp_path, name), "tools/average_checkpoints.py")
    assert name == "tool" or len(slurm.calls("srun")) == 1


def test_every_restart_meets_at_another_port(slurm: Stage, tmp_path: Path) -> None:
    for restart in range(5):
        slurm.run(spooled(tmp_path, "sft"), SLURM_RESTART_COUNT=str(restart))
    # By chance: two of them may be alike, once in a thousand times.
    assert len({port for _, port, *_ in slurm.calls("env")}) >= 3


def test_no_port_but_a_number_is_taken(slurm: Stage, tmp_path: Path) -> None:
    script = spooled(tmp_path, "sft")
    assert "MASTER_PORT=any is not a port." in slurm.run(script, code=2, MASTER_PORT="any").stderr
    assert not slurm.calls("srun")


def test_the_end_of_the_job_is_asked_for_where_slurm_does_not_say_it(slurm: Stage, tmp_path: Path) -> None:
    script = spooled(tmp_path, "sft")
    slurm.run(script, FAKE_END="2031-01-02T03:04:05", TZ="UTC")
    slurm.run(script)
    slurm.run(script, SLURM_JOB_END_TIME="1234")  # of another job
    slurm.run(script, SLURM_JOB_END_TIME="1234", FAKE_END="2031-01-02T03:04:05", TZ="UTC")
    slurm.run(script, SLURM_JOB_END_TIME="1234", FAKE_SQUEUE_CODE="1", FAKE_SQUEUE_SAYS="x")
    assert [end for *_, end in slurm.calls("env")] == ["1925089445", "", "", "1925089445", "1234"]


def test_a_log_begins_with_what_runs_where_and_ends_with_the_product(slurm: Stage, tmp_path: Path) -> None:
    job = {"SLURM_RESTART_COUNT": "2", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    finished = slurm.run(spooled(tmp_path, "sft"), FAKE_END="2031-01-02T03:04:05", TZ="UTC", **job)
    blank, other, first, nodes, limit, versions, *_, last = finished.stdout.splitlines()
    assert blank == other == ""  # parts of a job that was requeued are seen
    assert first.startswith("---- ") and first.endswith("sft: job 54242 (7_1), restart 2")
    assert nodes == "---- nodes: node[1-4]; 4 x 8 ranks"
    assert limit == "---- time limit: 2-00:00:00, until 2031-01-02 03:04:05"
    assert versions.startswith("---- versions: project ")
    assert versions.endswith(", Python 3.12.9, torch 2.99.0, megatron-core 0.99.0, Slurm 99.05.1")
    # srun trains in truth; here it leaves nothing.
    assert last.endswith(" sft: complete; the product is where the lines above say (exit code 0)")
    (tmp_path / "else" / "final").mkdir(parents=True)
    finished = slurm.run(spooled(tmp_path, "sft"), f"output={tmp_path}/else")
    assert finished.stdout.splitlines()[0].endswith("sft: job 54242, restart 0")
    assert finished.stdout.endswith(f" sft: complete; the product is {tmp_path}/else/final (exit code 0)\n")


def begun_log(slurm: Stage, tmp_path: Path, name: str, script: Path) -> Path:
    """Run a script as Slurm does, its output going to the file that the script asks for."""
    slurm.cwd = tmp_path / "submitted from here"
    slurm.cwd.mkdir(exist_ok=True)
    log = slurm.cwd / f"{name}-54242.log"
    caller = tmp_path / "slurmd"
    caller.write_text(f"exec >>'{log}' 2>&1\nbash '{script}'\necho 'written by Slurm'\n")
    slurm.run(caller, SLURM_JOB_NAME=name, PROJECT_ROOT=str(ROOT))
    return log


def test_logs_go_to_one_directory_below_the_runs(slurm: Stage, tmp_path: Path) -> None:
    slurm.environment["RUN_ROOT"] = str(tmp_path / "runs of mine")
    for name in ("sft", "sft", "sft_long"):
        begun = begun_log(slurm, tmp_path, name, spooled(tmp_path, name))
        assert not begun.exists()
    logs = tmp_path / "runs of mine" / "logs"
    assert sorted(log.name for log in logs.iterdir()) == ["sft-54242.log", "sft_long-54242.log"]
    lines = (logs / "sft-54242.log").read_text().splitlines()
    # Both starts, and what Slurm itself writes after the script.
    marks = [line.rpartition(": ")[2] for line in lines if line.startswith("written") or "restart" in line]
    assert marks == ["job 54242, restart 0", "written by Slurm"] * 2


def test_a_log_on_another_file_system_keeps_what_slurm_says(slurm: Stage, tmp_path: Path) -> None:
    number = slurm.directory / "stat"
    number.unlink()
    number.write_text("#!/usr/bin/env bash\n[[ $3 == -- && $4 == *.log ]] && echo 1 || echo 2\n")
    number.chmod(0o755)
    for _ in range(2):
        begun = begun_log(slurm, tmp_path, "sft", spooled(tmp_path, "sft"))
        log = tmp_path / "runs" / "logs" / "sft-54242.log"
        assert begun.read_text() == (
            f"the log is {log}; below stands what Slurm itself says of the job\nwritten by Slurm\n"
        )
    lines = log.read_text().splitlines()
    marks = [line.rpartition(": ")[2] for line in lines if line.startswith("written") or "restart" in line]
    assert marks == ["job 54242, restart 0", "written by Slurm", "job 54242, restart 0"]


def test_errors_stay_where_sbatch_was_told_to_put_them(slurm: Stage, tmp_path: Path) -> None:
    begun_log(slurm, tmp_path, "sft", spooled(tmp_path, "sft"))
    log, errors = slurm.cwd / "sft-54242.log", slurm.cwd / "errors"
    (tmp_path / "slurmd").write_text(f"exec >>'{log}' 2>>'{errors}'\nbash '{spooled(tmp_path, 'sft')}'\n")
    job = {"SLURM_JOB_NAME": "sft", "PROJECT_ROOT": str(ROOT)}
    slurm.run(tmp_path / "slurmd", code=76, FAKE_CODE="76", ATTEMPTS="1", **job)
    assert "1 time(s) in a row" in errors.read_text() and not log.exists()


def test_a_log_stays_where_sbatch_was_told_to_put_it(slurm: Stage, tmp_path: Path) -> None:
    begun = begun_log(slurm, tmp_path, "mine", spooled(tmp_path, "sft"))
    begun.unlink(missing_ok=True)
    log = slurm.cwd / "of my choice"
    (tmp_path / "slurmd").write_text(f"exec >>'{log}' 2>&1\nbash '{spooled(tmp_path, 'sft')}'\n")
    slurm.run(tmp_path / "slurmd", SLURM_JOB_NAME="sft", PROJECT_ROOT=str(ROOT))
    assert "sft: complete" in log.read_text()


def test_a_log_that_cannot_be_moved_stays(slurm: Stage, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    slurm.environment["RUN_ROOT"] = str(tmp_path / "file")
    begun = begun_log(slurm, tmp_path, "sft", spooled(tmp_path, "sft"))
    assert "the log stays in " in begun.read_text() and "sft: complete" in begun.read_text()


def test_the_command_that_makes_the_missing_beginning_is_named(slurm: Stage, tmp_path: Path) -> None:
    script, runs = spooled(tmp_path, "cpt_stage2"), tmp_path / "runs"
    finished = slurm.run(script, code=1, FAKE_PLAN_CODE="1")
    assert f"{runs}/cpt_stage1/average, with which cpt_stage2 begins, is not there." in finished.stderr
    command = f"sbatch examples/tool.sh tools/average_checkpoints.py {runs}/cpt_stage1/average --run {runs}/cpt_stage1"
    assert f"{command} --equispaced 3" in finished.stderr
    assert finished.stdout.endswith("cpt_stage2: not started; the reason stands above (exit code 1)\n")
    finished = slurm.run(spooled(tmp_path, "sft_long"), code=1, FAKE_PLAN_CODE="1")
    assert "sbatch examples/sft.sh" in finished.stderr
    # Not where that is not what is missing.
    (runs / "cpt_stage1" / "average").mkdir(parents=True)
    assert "is not there" not in slurm.run(spooled(tmp_path, "cpt_stage2"), code=1, FAKE_PLAN_CODE="1").stderr
    finished = slurm.run(spooled(tmp_path, "sft"), "init_from=elsewhere", code=1, FAKE_PLAN_CODE="1")
    assert "is not there" not in finished.stderr


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


def test_a_node_without_scontrol_or_squeue(slurm: Stage, tmp_path: Path) -> None:
    for name in ("scontrol", "squeue"):
        (slurm.directory / name).unlink()
    finished = slurm.run(spooled(tmp_path, "sft"), code=75, FAKE_CODE="75")
    assert "---- time limit: not known" in finished.stdout
    assert "sft: saved, but not requeued; the same command resumes it (exit code 75)" in finished.stdout
    assert "not requeued; start the same command again" in finished.stderr


def test_a_controller_that_does_not_answer_or_requeue(slurm: Stage, tmp_path: Path) -> None:
    finished = slurm.run(
        spooled(tmp_path, "sft"),
        code=75,
        FAKE_CODE="75",
        FAKE_SQUEUE_CODE="1",
        FAKE_SQUEUE_SAYS="x",
        FAKE_SCONTROL_CODE="1",
    )
    assert "---- time limit: not known" in finished.stdout and "saved, but not requeued" in finished.stdout


def test_several_nodes_need_srun(slurm: Stage, tmp_path: Path) -> None:
    (slurm.directory / "srun").unlink()
    refused = slurm.run(spooled(tmp_path, "sft"), code=2)
    assert "srun is not found in job 54242, which has 4 nodes." in refused.stderr
    slurm.run(spooled(tmp_path, "sft"), SLURM_JOB_NUM_NODES="1")
    assert slurm.calls("fakepython")[-1] == training("sft")


def test_numbers_of_attempts_are_numbers(slurm: Stage, tmp_path: Path) -> None:
    refused = slurm.run(spooled(tmp_path, "sft"), code=2, ATTEMPTS="many")
    assert "ATTEMPTS=many and RETRY_AFTER=30 must be whole numbers." in refused.stderr
    slurm.run(spooled(tmp_path, "sft"), code=76, FAKE_CODE="76", ATTEMPTS="1")
    assert len(slurm.calls("srun")) == 1


def test_requeue_only_where_the_run_asks_for_it(slurm: Stage, tmp_path: Path) -> None:
    slurm.run(spooled(tmp_path, "sft"), code=75, FAKE_CODE="75")
    assert slurm.calls("scontrol")[-1] == ["requeue", "54242"]
    slurm.log.write_text("")
    slurm.run(spooled(tmp_path, "sft"), code=1, FAKE_CODE="1")
    assert ["requeue", "54242"] not in slurm.calls("scontrol")


def test_a_task_of_an_array_speaks_for_itself_only(slurm: Stage, tmp_path: Path) -> None:
    """One of them has the number of the whole array; a variable of another array may be left in the environment."""
    script = spooled(tmp_path, "sft")
    for array in ("54242", "54240"):
        slurm.run(script, code=75, FAKE_CODE="75", SLURM_ARRAY_JOB_ID=array, SLURM_ARRAY_TASK_ID="3")
    assert slurm.calls("scontrol") == [["requeue", "54242_3"], ["requeue", "54242"]]
    asked = [word for call in slurm.calls("squeue") for word in call if word.startswith("--jobs=")]
    assert asked == ["--jobs=54242_3", "--jobs=54242"]


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


def test_the_login_node_needs_an_interpreter_outside_of_the_container(shell: Stage, tmp_path: Path) -> None:
    """PYTHON is that of the container then."""
    project = tmp_path / "project"
    shutil.copytree(ROOT / "examples", project / "examples")
    finished = shell.run(project / "examples" / "submit_all.sh", "--status", code=2, CONTAINER_IMAGE="registry/image:1")
    assert "the interpreter python3 is not found." in finished.stderr
    assert "outside of the container" in finished.stderr and "CONTAINER_IMAGE" not in finished.stderr


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


def test_nothing_of_one_cluster_stands_in_the_scripts() -> None:
    for path in (ROOT / "examples").glob("*.sh"):
        directives = [line for line in path.read_text().splitlines() if line.startswith("#SBATCH")]
        for word in ("--partition", "--account", "--nodelist", "--qos", "--chdir", "--time", "--mail"):
            assert not [line for line in directives if word in line], path
        if path.stem in STAGES:
            assert not [line for line in directives if "--nodes" in line], path
            assert {"#SBATCH --requeue", "#SBATCH --signal=USR1@300"} <= set(directives)


@pytest.mark.parametrize("gpus", ["1", "4"])
@pytest.mark.parametrize("name", ["TERM", "HUP", "INT"])
def test_a_signal_to_the_script_alone_reaches_the_run_which_saves(
    shell: Stage, tmp_path: Path, name: str, gpus: str
) -> None:
    """As from ``docker stop``, ``kill`` or a supervisor; a shell would otherwise die of it and leave the run behind."""
    working = tmp_path / "working"
    with shell.start("examples/sft.sh", FAKE_WORKING=str(working), FAKE_GPUS=gpus) as script:
        wait_until(working.exists)
        script.send_signal(getattr(signal, f"SIG{name}"))
        said = script.communicate()[0]
    assert script.returncode == 75, said
    assert shell.log.read_text().count(f"told {name}") == 1
    assert said.index("saved\n") < said.index("sft: saved; the same command resumes it (exit code 75)")


def test_a_signal_to_what_follows_runs_reaches_it(shell: Stage, tmp_path: Path) -> None:
    working = tmp_path / "working"
    with shell.start("examples/evaluate.sh", "runs/a", FAKE_WORKING=str(working), FAKE_CODE="143") as script:
        wait_until(working.exists)
        script.terminate()
        said = script.communicate()[0]
    assert script.returncode == 143 and "saved\n" in said
