"""A Slurm of two virtual nodes on this machine, made by a test and taken down with it.

munged, slurmctld and one slurmd for each node run as children of the tests, from a directory of their own, under names
and ports that nothing else has. The nodes' names lead to this machine only for what runs on them: each slurmd has a
view of its own of ``/etc/hosts``. Both nodes share ports, memory and locks, which real ones do not.

Partition ``urgent`` takes nodes from ``main``, whose jobs are requeued. Pretended GPUs are devices that nobody opens:
they are counted and put into ``CUDA_VISIBLE_DEVICES``.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo", "unshare")
NODES = ("virtual1", "virtual2")
CORES = 8
GRACE_S = 120
"""Between the signal to a job that loses its nodes and its end, for a machine that is busy with other things."""
FINISHED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL"}

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={run}/munge.socket
StateSaveLocation={run}/state
SlurmdSpoolDir={run}/spool-%n
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/slurmd-%n.pid
SlurmctldLogFile={run}/slurmctld.log
SlurmdLogFile={run}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=512
SchedulerParameters=batch_sched_delay=1,sched_interval=3,bf_interval=3,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=90
MinJobAge=3600
SlurmdTimeout=40
ReturnToService=2
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
{gres_types}
NodeName=virtual[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port={first}-{last} CPUs={cores} SocketsPerBoard=1 \
CoresPerSocket={cores} ThreadsPerCore=1 RealMemory=16384{gres} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=0:30:00 PriorityTier=1 PreemptMode=REQUEUE \
GraceTime={grace}
PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefaultTime=0:10:00 PriorityTier=10 PreemptMode=OFF
"""


def absent() -> str:
    """Why no Slurm can be started here; empty where one can."""
    if missing := [name for name in PROGRAMS if _where(name) is None]:
        return f"not installed: {', '.join(missing)}"
    return "" if os.geteuid() == 0 else "the daemons of Slurm need root"


def _where(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


class Cluster:
    """The daemons, from ``with`` to its end.

    Args:
        directory: of everything; short, since a socket lies in it.
        gpus: pretended ones of each node; 0 is a cluster that knows no GPUs.
    """

    def __init__(self, directory: Path, gpus: int = 0) -> None:
        self.directory, self.gpus = directory, gpus
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "SBATCH_", "SQUEUE_", "SRUN_"))
        }
        self.environment["SLURM_CONF"] = str(directory / "slurm.conf")

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "state").mkdir()
        self._configure()
        try:
            munge = [f"--{name}={self.directory}/munge.{name.partition('-')[0]}" for name in ("socket", "key-file")]
            munge += [f"--{name}-file={self.directory}/munge.{name}" for name in ("pid", "log", "seed")]
            self._start("munged", "munged", "--foreground", "--force", *munge)
            self.wait_for(lambda: (self.directory / "munge.socket").exists(), "munged")
            self._start("slurmctld", "slurmctld", "-D", "-f", self.environment["SLURM_CONF"])
            for node in NODES:
                self.start_node(node)
            self.wait_for(self._nodes_are_idle, "the nodes")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(AssertionError, subprocess.SubprocessError):
            self.cancel_all()
        self._stop()

    def _nodes_are_idle(self) -> bool:
        try:
            return self.run("sinfo", "-h", "-N", "-t", "idle", "-p", "main").count("\n") == len(NODES)
        except AssertionError:
            return False  # the controller does not answer yet

    def _configure(self) -> None:
        (self.directory / "munge.key").write_bytes(secrets.token_bytes(1024))
        (self.directory / "munge.key").chmod(0o400)
        ports = _free_ports(3)
        devices = [self.directory / f"gpu{number}" for number in range(self.gpus)]
        for device in devices:
            os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))
        files = f"{self.directory}/gpu[0-{self.gpus - 1}]" if self.gpus > 1 else str(devices[0]) if devices else ""
        gres = f"NodeName=virtual[1-2] Name=gpu Count={self.gpus} File={files}\n" if self.gpus else ""
        (self.directory / "gres.conf").write_text(gres)
        (self.directory / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=socket.gethostname().partition(".")[0], run=self.directory, port=ports, first=f"[{ports + 1}",
                last=f"{ports + 2}]", cores=CORES, grace=GRACE_S, gres=f" Gres=gpu:{self.gpus}" if self.gpus else "",
                gres_types="GresTypes=gpu" if self.gpus else "",
            )
        )  # fmt: skip
        (self.directory / "hosts").write_text(
            Path("/etc/hosts").read_text(encoding="utf-8") + f"127.0.0.1 {' '.join(NODES)}\n"
        )

    def _start(self, name: str, *command: str) -> None:
        output = (self.directory / f"{name}.out").open("ab")
        program = _where(command[0])
        assert program is not None
        self._daemons[name] = subprocess.Popen(
            [program, *command[1:]], env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )

    def start_node(self, node: str) -> None:
        """Start a node's daemon, which sees the nodes' names."""
        script = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'
        daemon = [str(_where("slurmd")), "-D", "-f", self.environment["SLURM_CONF"], "-N", node]
        self._start(node, "unshare", "--mount", "bash", "-c", script, "node", f"{self.directory}/hosts", *daemon)

    def kill_node(self, node: str) -> None:
        """End a node's daemon as a power cut would: what runs on the node is not told."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()

    def _stop(self) -> None:
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def run(self, *command: str | Path, cwd: Path | None = None, code: int = 0, **environment: str) -> str:
        """What a program prints."""
        finished = subprocess.run(
            [*map(str, command)], env=self.environment | environment, cwd=cwd, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip
        assert finished.returncode == code, f"{command}: {finished.stdout}{finished.stderr}"
        return finished.stdout

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says of a job."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "show", "job", number)))

    def wait_for_state(self, number: str, *states: str) -> dict[str, str]:
        """Wait until a job is in one of the states; returns what Slurm says of it then."""

        def reached() -> bool:
            state = self.job(number)["JobState"]
            assert state in states or state not in FINISHED, f"job {number} ended as {state}"
            return state in states

        self.wait_for(reached, f"job {number} to be {' or '.join(states)}", 900)
        return self.job(number)

    def wait_for_requeue(self, number: str) -> None:
        """Wait until a job is back in the queue, where it stays for two minutes, and nothing of its start is left."""

        def requeued() -> bool:
            job = self.job(number)
            assert job["JobState"] not in FINISHED, f"job {number} ended as {job['JobState']}"
            return job["Restarts"] != "0" and job["JobState"] in ("PENDING", "RUNNING")

        def gone() -> bool:
            if self.job(number)["JobState"] == "RUNNING":
                return True  # again, by itself
            commands = [command_of(process) for process in Path("/proc").glob("[0-9]*")]
            return not any(command.startswith(f"slurmstepd: [{number}.".encode()) for command in commands)

        self.wait_for(requeued, f"job {number} to be requeued", 900)
        self.wait_for(gone, f"the first start of job {number} to end", 900)

    def start_again(self, number: str, *changes: str) -> None:
        """Let a job that was requeued start at once, with changes such as ``TimeLimit=30``."""
        # What the nodes still report of the start that ended would be taken for the end of the next: the two minutes
        # are there for it.
        time.sleep(8)
        words = ["scontrol", "update", f"JobId={number}", "StartTime=now", *changes]
        subprocess.run(words, env=self.environment, capture_output=True, check=False)  # it may have begun by itself

    def cancel_all(self) -> None:
        """Cancel every job and wait until nothing of them is left."""

        def empty() -> bool:
            left = self.run("squeue", "--noheader", "--format=%A").split()
            if left:
                subprocess.run(["scancel", *left], env=self.environment, capture_output=True, check=False)
            return not left

        self.wait_for(empty, "the queue to be empty", 600)

    def wait_for(self, condition: Callable[[], bool], what: str, within_s: float = 300) -> None:
        """Wait until a condition holds."""
        deadline = time.monotonic() + within_s
        while True:
            if condition():
                return
            assert time.monotonic() < deadline, f"waited {within_s} s for {what}; see {self.directory}"
            time.sleep(0.5)


def command_of(process: Path) -> bytes:
    """The command line of a process, by its directory below ``/proc``; empty if it has ended."""
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def _free_ports(number: int) -> int:
    """The first of so many ports in a row that are free."""
    for first in range(17200, 19900, number):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + number):
                stack.enter_context(socket.create_server(("", port)))
            return first
    raise AssertionError("no ports are free")
