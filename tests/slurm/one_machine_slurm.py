"""A real Slurm on this one machine, for tests: a munged, a slurmctld and some slurmds in a folder of their own.

Without systemd, cgroups, accounting and anything outside the folder, so that several of them run side by side. The
daemons are children of this process and end with it. By hand:
``PYTHONPATH=tests python tests/slurm/one_machine_slurm.py`` starts one, says how to use it, and ends it at Ctrl-C.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from support import debian

PACKAGES = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}


class OneMachineSlurm:
    """A cluster of virtual nodes; a context manager."""

    def __init__(self, folder: Path, *, num_nodes: int = 2, cpus_per_node: int = 24, gib_per_node: int = 96) -> None:
        self.folder = folder
        # Names that every resolver takes for 127.0.0.1, ..2: torch's processes meet at the name of the first node,
        # and /etc/hosts stays as it is.
        self.nodes = [f"0x7f00000{number}" for number in range(1, num_nodes + 1)]
        self.conf = folder / "slurm.conf"
        self.env = {**os.environ, "PATH": debian.SEARCH_PATH, "SLURM_CONF": str(self.conf)}
        self._cpus, self._mib = cpus_per_node, gib_per_node * 1024
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> OneMachineSlurm:
        self._configure()
        try:
            munge = [f"--{name}={self.folder / 'munge'}.{name.partition('-')[0]}" for name in ("key-file", "socket")]
            munge += [f"--{name}={self.folder / 'munged'}.{name[:3]}" for name in ("pid-file", "seed-file", "log-file")]
            # The folder's owner and mode may be odd in a container, hence --force.
            self._start("munged", "--foreground", "--force", *munge)
            self._wait_until("munged listens", (self.folder / "munge.socket").exists)
            self._start_controller()
            for node in self.nodes:
                self._start(f"slurmd {node}", "-D", "-f", str(self.conf), "-N", node)
            self._wait_until("all nodes are idle", lambda: self._states().count("idle") == len(self.nodes))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Cancel all jobs, end all daemons, and then whatever still runs with this cluster's configuration."""
        if "slurmctld" in self._daemons and self._daemons["slurmctld"].poll() is None:
            for process in list(self.processes()):
                # One that a test has stopped would not end before KillWait is over.
                _signal(process, signal.SIGCONT)
            self.try_run("scancel", "--user", getpass.getuser())
            self._wait_until("jobs have ended", lambda: not self.try_run("squeue", "-h"), may_fail=True)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in reversed(self._daemons.values()):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        for process in list(self.processes()):
            _signal(process, signal.SIGKILL)

    # Use ----------------------------------------------------------------------------------------------------------

    def run(self, *command: str) -> str:
        """Run a Slurm command and return what it prints.

        Raises:
            RuntimeError: If it fails.
        """
        result = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60, check=False)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip()}")
        return result.stdout.strip()

    def try_run(self, *command: str) -> str | None:
        """Run a Slurm command; None if it fails."""
        try:
            return self.run(*command)
        except (RuntimeError, subprocess.TimeoutExpired):
            return None

    def jobs(self, name: str | None = None) -> dict[str, str]:
        """Return id and state of all jobs that ever were, or of those with a name, oldest first."""
        option = ["--name", name] if name else []
        lines = self.run("squeue", "-h", "-t", "all", "-S", "i", "-o", "%A %T", *option).splitlines()
        return dict(line.split() for line in lines)

    def processes(self) -> Iterator[int]:
        """Pids of all processes that were started with this cluster's configuration: daemons, jobs, who submits."""
        for process in _all_processes():
            if process != os.getpid() and f"SLURM_CONF={self.conf}" in _read(process, "environ").split("\0"):
                yield process

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let jobs be queued, but not started, until the block ends."""
        self.run("scontrol", "update", "partitionname=main", "state=down")
        try:
            yield
        finally:
            self.run("scontrol", "update", "partitionname=main", "state=up")

    def fail_node(self, node: str) -> None:
        """Let a node lose its power: all its processes die at once, and the controller is told that it is down."""
        jobs = self.run("squeue", "-h", "-w", node, "-o", "%A").split()
        steps = [f"slurmstepd: [{job}." for job in jobs]
        self._daemons[f"slurmd {node}"].kill()
        self._daemons[f"slurmd {node}"].wait()
        for process in _all_processes():
            if any(step in _read(process, "cmdline") for step in steps):
                _signal(process, signal.SIGKILL)
        for process in list(self.processes()):
            if f"SLURMD_NODENAME={node}" in _read(process, "environ").split("\0"):
                _signal(process, signal.SIGKILL)
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=power")

    def restore_node(self, node: str) -> None:
        """Bring a failed node back."""
        self._start(f"slurmd {node}", "-D", "-f", str(self.conf), "-N", node)
        # Refused where the node has registered by itself meanwhile.
        self.try_run("scontrol", "update", f"nodename={node}", "state=resume")
        self._wait_until(f"{node} is back", lambda: "down" not in (self.try_run("sinfo", "-h", "-n", node) or "down"))

    def stop_controller(self) -> None:
        """Stop the controller: no command gets an answer, and jobs go on.

        Killed, it would forget what it has not saved for seconds, and call jobs running that have ended.
        """
        self._daemons["slurmctld"].terminate()
        self._daemons["slurmctld"].wait()

    def restore_controller(self) -> None:
        """Bring the controller back, with all that it knew."""
        self._start_controller()
        self._wait_until("the controller answers", lambda: self.try_run("scontrol", "ping") is not None)

    # Start and end ------------------------------------------------------------------------------------------------

    def _configure(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "munge.key").touch(0o600)
        (self.folder / "munge.key").write_bytes(secrets.token_bytes(128))
        for name in ("state", *self.nodes):
            (self.folder / name).mkdir()
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
        host = os.uname().nodename.partition(".")[0]
        control, *ports = _free_ports(1 + len(self.nodes))
        me = getpass.getuser()
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
            f"CPUs={self._cpus} RealMemory={self._mib}"
            for node, port in zip(self.nodes, ports, strict=True)
        )
        self.conf.write_text(f"""\
ClusterName=one_machine
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser={me}
SlurmdUser={me}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
CredType=cred/munge
# A job that is requeued waits until its old credential has expired.
AuthInfo=socket={self.folder}/munge.socket,cred_expire=5

# No cgroups, no binding, no MPI, no accounting.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none

# Jobs share CPUs and memory that are only claimed.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1024
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0

# As on a real cluster, only sooner; ended jobs are remembered for the tests to count.
KillWait=5
MinJobAge=7200
JobRequeue=1
ReturnToService=2
SlurmdTimeout=300
MailProg=/bin/true

StateSaveLocation={self.folder}/state
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmctldLogFile={self.folder}/slurmctld.log
SlurmdSpoolDir={self.folder}/%n
SlurmdPidFile={self.folder}/slurmd-%n.pid
SlurmdLogFile={self.folder}/slurmd-%n.log

{nodes}
# A job in `urgent` takes the place of those in `main`: they get SIGTERM, and are requeued when GraceTime is over.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 PriorityTier=1 GraceTime=5
PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefaultTime=10 PriorityTier=9 PreemptMode=OFF
""")

    def _start_controller(self) -> None:
        self._start("slurmctld", "-D", "-f", str(self.conf))

    def _start(self, name: str, *arguments: str) -> None:
        tool = shutil.which(name.partition(" ")[0], path=debian.SEARCH_PATH)
        assert tool is not None
        log = (self.folder / f"{name.replace(' ', '-')}.out").open("ab")
        # A daemon ends with its parent even when that is killed. A session of its own: Ctrl-C is not for daemons.
        command = ["setpriv", "--pdeathsig", "TERM", tool, *arguments]
        self._daemons[name] = subprocess.Popen(
            command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        log.close()

    def _states(self) -> list[str]:
        return (self.try_run("sinfo", "-h", "-N", "-p", "main", "-o", "%t") or "").split()

    def _wait_until(self, what: str, is_true: Callable[[], bool], *, may_fail: bool = False) -> None:
        deadline = time.monotonic() + 30
        while not is_true():
            dead = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if (dead or time.monotonic() > deadline) and not may_fail:
                logs = [*self.folder.glob("*.out"), *self.folder.glob("*.log")]
                ends = "\n".join(f"{log.name}: {log.read_text(errors='replace')[-1000:]}" for log in logs)
                raise RuntimeError(f"{', '.join(dead) or 'Slurm'} failed before {what}\n{ends}")
            if time.monotonic() > deadline:
                return
            time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _all_processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _read(process: int, name: str) -> str:
    """Return a file below /proc/<pid>; empty for a process that is gone, a zombie, or another user's."""
    try:
        return Path(f"/proc/{process}/{name}").read_text(errors="replace")
    except OSError:
        return ""


def _signal(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


if __name__ == "__main__":
    debian.install(PACKAGES)
    with tempfile.TemporaryDirectory() as folder, OneMachineSlurm(Path(folder)) as cluster:
        sys.stdout.write(f"export SLURM_CONF={cluster.conf}\n")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
