"""The cluster of these tests by itself: it leaves nothing behind, and several run at once."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import one_machine_slurm
import pytest
from one_machine_slurm import OneMachineSlurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def running(folder):
    """Processes whose command line or environment names a folder; a zombie has neither."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"{folder}/".encode() in text:
                found.append(text.split(b"\0")[0])
    return found


def test_a_second_cluster_runs_beside_the_first_and_leaves_nothing_behind_though_its_test_failed(slurm, tmp_path):
    with contextlib.suppress(ZeroDivisionError), OneMachineSlurm(tmp_path, num_nodes=1) as second:
        assert second.run("srun", "printenv", "SLURMD_NODENAME") == second.nodes[0]
        second.run("sbatch", "--chdir", str(tmp_path), "--wrap", "srun sleep 1000")
        assert len(second.jobs()) == 2
        assert len(running(tmp_path)) > 3
        raise ZeroDivisionError
    assert not running(tmp_path)
    assert sorted(slurm.run("srun", "--nodes", "2", "printenv", "SLURMD_NODENAME").split()) == slurm.nodes


def test_a_cluster_whose_test_was_killed_takes_its_daemons_along(slurm, tmp_path):
    code = "import sys, os; from pathlib import Path; from one_machine_slurm import OneMachineSlurm as S\n"
    code += "with S(Path(sys.argv[1]), num_nodes=1): os.kill(os.getpid(), 9)"
    folder = Path(one_machine_slurm.__file__).parent
    env = {**os.environ, "PYTHONPATH": str(folder.parent)}
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=folder, env=env, check=False)
    assert (tmp_path / "slurmctld.log").exists()
    for _ in range(100):
        if not running(tmp_path):
            break
        subprocess.run(["sleep", "0.1"], check=True)
    assert not running(tmp_path)
