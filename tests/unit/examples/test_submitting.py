"""The whole chain: what is submitted, what is not, and what is shown of it."""

from __future__ import annotations

import json
import resource
import shlex
from pathlib import Path

import pytest
from stand_ins import STAGES, Stage, make, submitted, wait_until

from examples.recipe.record import Record, Submitted
from megatron_apriel.errors import OutputError
from megatron_apriel.locks import take_lock

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


def depends_on(words: list[str]) -> list[str]:
    return [word for word in words if word.startswith("--dependency")]


def queue(shell: Stage, **states: str) -> str:
    """What squeue shows from now on: ``step="STATE"`` or ``step="STATE reason"``, under the numbers of the record."""
    record = Path(shell.environment["RUN_ROOT"]) / "logs" / "submitted.jsonl"
    jobs = {line["step"]: line["job"] for line in map(json.loads, record.read_text().splitlines())}
    lines = []
    for name, words in states.items():
        state, _, reason = words.partition(" ")
        lines.append(f"{jobs[name]}|{state}|N/A|{reason or 'None'}|{name}\n")
    file = shell.directory.parent / "queue"
    file.write_text("".join(lines))
    return str(file)


def test_every_step_waits_for_those_before(shell: Stage, tmp_path: Path) -> None:
    (tmp_path / "runs" / "upscaled").rmdir()
    runs = tmp_path / "runs"
    finished = shell.run(
        "examples/submit_all.sh", "--nodes", "80", SOURCE_MODEL=str(tmp_path), CPU_SBATCH_ARGS="--partition=cpu -v"
    )
    jobs = submitted(shell)
    assert list(jobs) == list(CHAIN)
    ids = {name: 1000 + number for number, name in enumerate(CHAIN, start=1)}
    for name, before in CHAIN.items():
        expected = [f"--dependency=afterok:{':'.join(str(ids[step]) for step in before)}"] if before else []
        assert depends_on(jobs[name]) == expected
        is_stage = name in STAGES
        assert ("--nodes=80" in jobs[name]) == is_stage
        assert ("--partition=cpu" in jobs[name]) != is_stage
        assert jobs[name][-1] == f"examples/{name}.sh" if is_stage else "examples/tool.sh" in jobs[name]
        assert f"--output={runs}/logs/%x-%j.log" in jobs[name]
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


def test_the_narrower_option_wins_and_settings_add_up(shell: Stage) -> None:
    shell.run(
        "examples/submit_all.sh", "--nodes", "8", "--nodes", "realign:2", "--tasks-per-node=4", "--gpus-per-node=4",
        "--gpus-per-node", "realign:0", "--partition=gpu", "--partition", "tools:cpu", "--partition=release:big",
        "--account=lab", "--qos=stages:high", "--time=1:00:00", "--time", "sft:2-00:00:00", "--set", "seed=7",
        "--set", "sft:seed=8", "--set", "stages:logging.every=3", "--sbatch=--reservation=mine",
        "--sbatch", "sft:--mail-type=END",
    )  # fmt: skip
    jobs = submitted(shell)

    def given(name: str, option: str) -> list[str]:
        return [word.partition("=")[2] for word in jobs[name] if word.startswith(f"--{option}=")]

    assert [given(name, "nodes") for name in ("upscale", "realign", "release")] == [["8"], ["2"], []]
    assert given("sft", "ntasks-per-node") == given("sft", "gpus-per-node") == ["4"]
    assert given("realign", "gpus-per-node") == ["0"]
    assert [given(name, "partition") for name in ("sft", "average_cpt1", "release")] == [["gpu"], ["cpu"], ["big"]]
    assert given("release", "account") == ["lab"] and given("release", "qos") == [] and given("sft", "qos") == ["high"]
    assert [given(name, "time") for name in ("sft", "release")] == [["2-00:00:00"], ["1:00:00"]]
    assert jobs["sft"][jobs["sft"].index("examples/sft.sh") + 1 :] == ["seed=7", "logging.every=3", "seed=8"]
    assert jobs["realign"][-2:] == ["seed=7", "logging.every=3"]
    assert "seed=7" not in jobs["release"] and "--reservation=mine" in jobs["release"]
    assert ["--mail-type=END" in jobs[name] for name in ("sft", "sft_long")] == [True, False]


def test_products_that_are_there_are_left_out(shell: Stage, tmp_path: Path) -> None:
    make(shell, "upscale/final", "upscale/average", "realign/final")
    finished = shell.run("examples/submit_all.sh")
    jobs = submitted(shell)
    assert list(jobs) == list(CHAIN)[4:]
    assert not depends_on(jobs["cpt_stage1"])
    assert f"{tmp_path}/runs/realign/final is there already" in finished.stdout


def test_what_only_finished_steps_need_is_not_made_again(shell: Stage) -> None:
    make(shell, "cpt_stage2/final")
    finished = shell.run("examples/submit_all.sh")
    assert list(submitted(shell)) == ["sft", "sft_subset", "sft_long", "release"]
    assert "realign            is not needed: what follows it is there already" in finished.stdout
    # A stage that is being trained again is not done.
    make(shell, "sft/final", "sft/.final-outdated")
    assert "sft                sbatch" in shell.run("examples/submit_all.sh", "--dry-run").stdout
    make(shell, "release")
    assert shell.run("examples/submit_all.sh").stdout.count("is not needed") == 8


def test_a_second_copy_is_refused(shell: Stage) -> None:
    shell.run("examples/submit_all.sh")
    states = dict.fromkeys(list(CHAIN)[2:], "PENDING Dependency") | {"upscale": "RUNNING"}
    refused = shell.run("examples/submit_all.sh", code=2, FAKE_QUEUE=queue(shell, **states))
    assert len(shell.calls("sbatch")) == 10
    assert "this chain is in the queue already: upscale 1001, average_upscale 1002" in refused.stderr
    assert "scancel 1001 1002" in refused.stderr and "--status" in refused.stderr
    # Slurm forgets jobs that ended; then all is submitted again.
    shell.run("examples/submit_all.sh")
    assert len(shell.calls("sbatch")) == 20
    (squeue,) = [words for words in shell.calls("squeue") if "1001" in words[-1]][:1]
    assert "--states=all" in squeue and squeue[-1].startswith("--jobs=1001,1002")


def test_another_directory_of_runs_is_another_chain(shell: Stage, tmp_path: Path) -> None:
    shell.run("examples/submit_all.sh")
    shown = queue(shell, upscale="RUNNING")
    make(shell, "../others/upscaled")
    shell.run("examples/submit_all.sh", RUN_ROOT=str(tmp_path / "others"), FAKE_QUEUE=shown)
    assert len(shell.calls("sbatch")) == 20


def test_a_job_that_has_a_number_by_chance_is_not_the_chains(shell: Stage) -> None:
    shell.run("examples/submit_all.sh")
    (shell.directory.parent / "queue").write_text("1001|RUNNING|N/A|None|somebody|else\n")
    shell.run("examples/submit_all.sh", FAKE_QUEUE=str(shell.directory.parent / "queue"))
    assert len(shell.calls("sbatch")) == 20


def test_after_a_failure_the_rest_is_submitted(shell: Stage) -> None:
    shell.run("examples/submit_all.sh")
    make(shell, "upscale/final", "upscale/average", "realign/final", "cpt_stage1/final", "cpt_stage1/average")
    make(shell, "cpt_stage2/final", "sft/final")
    shell.log.write_text("")
    shown = queue(shell, sft_subset="FAILED", sft_long="RUNNING", release="PENDING DependencyNeverSatisfied")
    finished = shell.run("examples/submit_all.sh", "--set", "sft_subset:seed=5", FAKE_QUEUE=shown)
    jobs = submitted(shell)
    assert list(jobs) == ["sft_subset", "release"]
    assert depends_on(jobs["release"]) == ["--dependency=afterok:1001:1009"]  # the new one, and the one that runs
    assert "sft_long           job 1009 is in the queue already (running)" in finished.stdout
    assert "sft_subset: was submitted with no settings, and is now with seed=5" in finished.stderr


def test_jobs_behind_one_that_failed_are_not_counted_on(shell: Stage) -> None:
    """Slurm has not cancelled them yet."""
    shell.run("examples/submit_all.sh")
    make(shell, "upscale/final", "upscale/average")
    shell.log.write_text("")
    waiting = dict.fromkeys(list(CHAIN)[4:], "PENDING Dependency")
    shell.run("examples/submit_all.sh", FAKE_QUEUE=queue(shell, realign="CANCELLED", **waiting))
    assert list(submitted(shell)) == list(CHAIN)[3:]
    # Those whose job before was forgotten after it ended well are.
    make(shell, "realign/final")
    shell.run("examples/submit_all.sh", code=2, FAKE_QUEUE=queue(shell, **waiting))


@pytest.mark.parametrize("says", ["slurm_load_jobs error: Unable to contact slurm controller", ""])
def test_nothing_is_submitted_while_slurm_does_not_say_what_is_queued(shell: Stage, says: str) -> None:
    shell.run("examples/submit_all.sh")
    silent = {"FAKE_SQUEUE_CODE": "1", "FAKE_SQUEUE_SAYS": says}
    refused = shell.run("examples/submit_all.sh", code=1, **silent)
    assert "does not say whether jobs of these runs are queued" in refused.stderr
    assert len(shell.calls("sbatch")) == 10
    assert "is not known: Slurm does not answer" in shell.run("examples/submit_all.sh", "--status", **silent).stdout
    # What it says when it knows none of them.
    invalid = {"FAKE_SQUEUE_CODE": "1", "FAKE_SQUEUE_SAYS": "slurm_load_jobs error: Invalid job id specified"}
    shell.run("examples/submit_all.sh", **invalid)
    assert len(shell.calls("sbatch")) == 20


def test_a_queue_that_is_full_is_filled_later(shell: Stage) -> None:
    refused = shell.run("examples/submit_all.sh", code=1, FAKE_SBATCH_FULL="4")
    assert "cpt_stage1 was not submitted: sbatch ended with exit code 1" in refused.stderr
    assert "QOSMaxSubmitJobPerUserLimit" in refused.stderr and "upscale 1001" in refused.stderr
    shell.log.write_text("sbatch\n" * 9)  # other numbers from now on
    shown = queue(shell, upscale="RUNNING", average_upscale="PENDING Dependency", realign="PENDING Dependency")
    shell.run("examples/submit_all.sh", FAKE_QUEUE=shown)
    jobs = [words for words in shell.calls("sbatch") if words]
    assert [words[1] for words in jobs] == [f"--job-name={name}" for name in list(CHAIN)[4:]]
    assert depends_on(jobs[0]) == ["--dependency=afterok:1003"]


@pytest.mark.parametrize("says", ["Welcome to the cluster\\n%s\\n", "Submitted batch job %s", "%s;green"])
def test_answers_of_sbatch(shell: Stage, says: str) -> None:
    shell.run("examples/submit_all.sh", FAKE_SBATCH_SAYS=says)
    assert depends_on(submitted(shell)["realign"]) == ["--dependency=afterok:1002"]
    if "green" in says:
        shell.run("examples/submit_all.sh", "--status")
        assert "--clusters=green" in shell.calls("squeue")[-1]


def test_an_answer_without_a_number_is_an_error(shell: Stage) -> None:
    refused = shell.run("examples/submit_all.sh", code=1, FAKE_SBATCH_SAYS="your budget is 12 hours")
    assert "'your budget is 12 hours' instead of a job's number" in refused.stderr
    assert "upscale may not have been submitted" in refused.stderr and "squeue --me" in refused.stderr
    assert len(shell.calls("sbatch")) == 1


def test_status_shows_the_chain(shell: Stage) -> None:
    runs = Path(shell.environment["RUN_ROOT"])
    shell.run("examples/submit_all.sh")
    make(shell, "upscale/final", "upscale/average", "realign")
    (runs / "realign" / "metrics.jsonl").write_text(
        '{"kind": "step", "step": 120, "steps": 800}\n{"kind": "checkpoint", "step": 118, "steps": 800}\n{"kind": "st'
    )
    (runs / "logs" / "realign-1003.log").write_text(
        "---- attempt 1 of 3\nx\n---- attempt 2 of 3\nOutputError: full\n\n"
    )
    (runs / "logs" / "realign-977.log").write_text("---- attempt 1 of 3\n")
    waiting = dict.fromkeys(list(CHAIN)[4:], "PENDING Dependency")
    finished = shell.run("examples/submit_all.sh", "--status", FAKE_QUEUE=queue(shell, realign="RUNNING", **waiting))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in finished.stdout.splitlines()]
    table = {row[0]: row[1:] for row in rows if row}
    assert table["surgery"] == ["-", "done", "", "", "", "upscaled"]
    assert table["upscale"] == ["1001", "done", "", "-", "-", "upscale/final"]
    assert table["realign"] == ["1003", "running", "", "3", "118 of 800", "-"]
    assert table["cpt_stage1"] == ["1004", "pending", "for realign", "-", "-", "-"]
    assert table["release"] == ["1010", "pending", "for sft_subset, sft_long", "", "", "-"]
    assert len(shell.calls("sbatch")) == 10
    # After a failure: where to look, and what to do.
    finished = shell.run("examples/submit_all.sh", "--status", FAKE_QUEUE=queue(shell, realign="FAILED"))
    assert f"realign: job 1003 ended without its product; {runs}/logs/realign-1003.log ends:" in finished.stdout
    assert "    OutputError: full" in finished.stdout
    assert "neither there nor in the queue: realign, cpt_stage1" in finished.stdout
    (runs / "logs" / "realign-1003.log").unlink()
    finished = shell.run("examples/submit_all.sh", "--status", FAKE_QUEUE=queue(shell, realign="FAILED"))
    assert "realign: job 1003 failed and wrote no log; its node must be able to write" in finished.stdout
    # And at the end.
    make(shell, "release")
    assert f"complete: {runs}/release" in shell.run("examples/submit_all.sh", "--status").stdout


def test_status_says_why_a_job_waits(shell: Stage) -> None:
    shell.run("examples/submit_all.sh")
    queue(shell, upscale="PENDING Priority")
    file = shell.directory.parent / "queue"
    file.write_text(file.read_text().replace("N/A", "2031-01-02T03:04:05"))
    finished = shell.run("examples/submit_all.sh", "--status", FAKE_QUEUE=str(file))
    assert "Priority, from 2031-01-02 03:04:05" in finished.stdout


def test_a_dry_run_submits_nothing_and_quotes(shell: Stage, tmp_path: Path) -> None:
    shell.environment["RUN_ROOT"] = str(tmp_path / "my runs")
    finished = shell.run("examples/submit_all.sh", "--nodes=2", "--dry-run", "--set", "sft:checkpoint.keep=last 2")
    assert not shell.calls("sbatch") and not (tmp_path / "my runs").exists()
    lines = [line for line in finished.stdout.splitlines() if " sbatch --parsable " in line]
    assert len(lines) == len(CHAIN)
    assert "--dependency=afterok:JOB_OF_sft_subset:JOB_OF_sft_long" in lines[-1]
    words = next(shlex.split(line) for line in lines if line.startswith("sft "))
    assert f"--output={tmp_path}/my runs/logs/%x-%j.log" in words and words[-1] == "checkpoint.keep=last 2"


def test_without_slurm_it_runs_here(shell: Stage) -> None:
    (shell.directory / "sbatch").unlink()
    refused = shell.run("examples/submit_all.sh", code=2)
    assert "sbatch is not found." in refused.stderr and "--local" in refused.stderr
    shell.run("examples/submit_all.sh", "--local", "--set", "sft:seed=9")
    commands = [words for words in shell.calls("fakepython") if words[0] != "-c" and "--dry-run" not in words]
    commands = [words for words in commands if words[1] != "examples.recipe"]
    order = [Path(words[2]).stem if words[0] == "-m" else Path(words[1]).parent.name for words in commands]
    assert order == [
        "upscale", "upscale", "realign", "cpt_stage1", "cpt_stage1", "cpt_stage2", "sft", "sft_subset", "sft_long",
        "runs",
    ]  # fmt: skip
    assert [words[3:] for words in commands if words[2].endswith("/sft.yaml")] == [["seed=9"]]


def test_a_signal_here_reaches_the_step_and_ends_the_chain(shell: Stage, tmp_path: Path) -> None:
    working = tmp_path / "working"
    with shell.start("examples/submit_all.sh", "--local", FAKE_WORKING=str(working)) as chain:
        wait_until(working.exists)
        chain.terminate()
        said = chain.communicate()[0]
    assert chain.returncode == 143, said
    assert said.index("saved\n") < said.index("upscale was stopped by SIGTERM, with exit code 75; the same command")
    assert "realign" not in shell.log.read_text().partition("told TERM")[2]


def test_a_failure_here_ends_the_chain(shell: Stage) -> None:
    failed = shell.run("examples/submit_all.sh", "--local", code=2, FAKE_CODE="1")
    assert "upscale ended with exit code 1." in failed.stderr
    stages = {words[2] for words in shell.calls("fakepython") if words[0] == "-m" and words[1] != "examples.recipe"}
    assert stages == {"examples/upscale.yaml"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "many"], "--nodes 'many' is not a whole number from 1."),
        (["--nodes", "sft:"], "--nodes 'sft:' is not a whole number from 1."),
        (["--nodes", "0"], "is not a whole number from 1."),
        (["--nodes", "tools:2"], "surgery and averages run on one node"),
        (["--nodes"], "expected one argument"),
        (["--nodez=3"], "unrecognized arguments: --nodez=3"),
        (["--local", "--nodes", "3"], "--nodes goes with Slurm, not with --local"),
        (["--status", "--set", "seed=1"], "--status only looks"),
        (["--set", "seed"], "--set 'seed' is not a setting."),
        (["--set", "release:seed=1"], "release is no stage"),
        (["--set", "sfft:seed=1"], "is not a setting."),
        (["--set", "sft:tokns=1B"], "Did you mean tokens?"),
        (["--set", "output=elsewhere"], "Set RUN_ROOT"),
        (["--set", "init_from=elsewhere"], "--set STAGE:init_from="),
        (["--sbatch", "reservation=x"], "is not an option of sbatch"),
        (["--sbatch=--dependency=singleton"], "named, logged and ordered"),
        (["--sbatch=sft:-Jother"], "named, logged and ordered"),
        (["--sbatch=--arr=1-2"], "named, logged and ordered"),
        (["--partition", "sft:"], "has no value"),
    ],
)
def test_refused(shell: Stage, arguments: list[str], message: str) -> None:
    assert message in shell.run("examples/submit_all.sh", *arguments, code=2).stderr
    assert not shell.calls("sbatch")


def test_the_source_model_must_be_there(shell: Stage, tmp_path: Path) -> None:
    (tmp_path / "runs" / "upscaled").rmdir()
    finished = shell.run("examples/submit_all.sh", code=2, MODEL_ROOT="/nowhere")
    assert "the model to begin with, /nowhere/pixtral-12b, does not exist." in finished.stderr


def test_a_record_that_is_damaged_is_named(shell: Stage) -> None:
    shell.run("examples/submit_all.sh")
    record = Path(shell.environment["RUN_ROOT"]) / "logs" / "submitted.jsonl"
    record.write_text(record.read_text() + "{}\n")
    assert f"line 11 of {record} is not of a job" in shell.run("examples/submit_all.sh", code=2).stderr


def test_a_job_that_cannot_be_written_down_is_named(tmp_path: Path) -> None:
    """As on a full disk; what was written before can still be read."""
    (tmp_path / "logs").mkdir()
    record = Record(tmp_path)
    record.add(Submitted("surgery", "17"))
    before = record.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"upscale was submitted as job 18;green, but (?s:.*)\(scancel 18\)"):
            record.add(Submitted("upscale", "18;green"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert record.path.read_bytes() == before and list(Record(tmp_path).latest) == ["surgery"]


def test_two_cannot_submit_at_once(shell: Stage) -> None:
    make(shell, "logs")
    with take_lock(Path(shell.environment["RUN_ROOT"]) / "logs" / ".submitting"):
        refused = shell.run("examples/submit_all.sh", code=2)
    assert "these runs are being submitted at this moment" in refused.stderr
    assert not shell.calls("sbatch")
    shell.run("examples/submit_all.sh")


def test_runs_that_cannot_be_written_are_named(shell: Stage, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = shell.run("examples/submit_all.sh", code=1, RUN_ROOT=str(tmp_path / "file"), SOURCE_MODEL=str(tmp_path))
    assert f"OutputError: {tmp_path}/file/logs cannot be written" in refused.stderr
    assert not shell.calls("sbatch")


def test_help_teaches(shell: Stage) -> None:
    text = shell.run("examples/submit_all.sh", "--help").stdout
    for word in ("--status", "--dry-run", "cpt_stage2:tokens=1B", "scancel --signal=INT JOB", "CPU_SBATCH_ARGS"):
        assert word in text
