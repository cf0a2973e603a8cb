"""A real Slurm of three nodes on this machine, for tests: munge, MariaDB, slurmdbd, slurmctld and three slurmd.

Needs root on a Debian-like system. What is missing is installed with apt; everything else lies below one folder and
ends with the process that started it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from processes import descendants, kill, processes

PACKAGES = ["slurm-wlm", "slurmdbd", "munge", "mariadb-server"]
NODES = ["n1", "n2", "n3"]
DEFAULT = Path("/etc/slurm/slurm.conf")
"""Where Slurm's commands look: Snakemake's plugin removes ``SLURM_CONF`` from the environment of its jobs."""

SLURM = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=slurm
SlurmdUser=root
AuthType=auth/munge
# a requeued job waits as long as a credential is valid: seconds here, two minutes by default
AuthInfo=socket={base}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd.%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd.%n.log
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# without cgroups, memory is enforced by looking at it every second; such a job ends as FAILED
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=bf_interval=2,sched_interval=2
# nodes may have less than they say
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=10
MinJobAge=300
KillWait=5
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={database_daemon}
AccountingStoragePass={base}/munge/socket
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
GresTypes=gpu
NodeName={first} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports} CPUs=1 RealMemory=64000 Gres=gpu:fake:1
PartitionName=main Nodes=ALL Default=YES MaxTime=1-00:00:00 State=UP
PartitionName=gpu Nodes=ALL MaxTime=1-00:00:00 State=UP
"""
SLURMDBD = """\
AuthType=auth/munge
AuthInfo=socket={base}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={database_daemon}
SlurmUser=slurm
PidFile={base}/run/slurmdbd.pid
LogFile={base}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct_db
"""


def reason_against() -> str | None:
    """Why no Slurm can be started here; None where it can."""
    if os.geteuid() != 0:
        return "a Slurm for tests needs root"
    if shutil.which("apt-get") is None and shutil.which("slurmctld") is None:
        return "a Slurm for tests needs apt-get or an installed Slurm"
    if DEFAULT.exists() and not DEFAULT.is_symlink():
        return f"this machine belongs to a Slurm: {DEFAULT}"
    return None


def install() -> None:
    """Install the packages that are missing; no service is started."""
    found = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${db:Status-Status} ", *PACKAGES], capture_output=True
    )
    if found.stdout.split() == [b"installed"] * len(PACKAGES):
        return
    policy = Path("/usr/sbin/policy-rc.d")
    own = not policy.exists()
    if own:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        variables = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=True, env=variables)
        words = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES]
        subprocess.run(words, check=True, env=variables, stdout=subprocess.DEVNULL)
    finally:
        if own:
            policy.unlink()


class SlurmCluster:
    """The daemons, and what tests do to them."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.daemons: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        """Start all daemons and wait until the nodes are idle."""
        self._write()
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
        options = " ".join(f"--{option}={self.base}/munge/{name}" for option, name in files.items())
        self._daemon("munged", "munge", f"munged -F {options}")
        self._wait("munge", lambda: succeeds(["munge", "-S", f"{self.base}/munge/socket", "-n"]))
        self._start_database()
        self._daemon("slurmdbd", "slurm", "slurmdbd -D")
        self._wait("slurmdbd", lambda: succeeds(["sacctmgr", "-n", "show", "cluster"]))
        for words in (["cluster", "test"], ["account", "lab"], ["user", "root", "account=lab", "DefaultAccount=lab"]):
            subprocess.run(["sacctmgr", "-i", "add", *words], check=True, capture_output=True, env=self.environment)
        self._daemon("slurmctld", "slurm", "slurmctld -D")
        self._wait("slurmctld", lambda: succeeds(["scontrol", "ping"]))
        for node in NODES:
            self.recover(node)

    def stop(self) -> None:
        """Stop all daemons, the youngest first; jobs end with their nodes."""
        for name in reversed(self.daemons):
            if name in NODES:
                self._end_steps(name)
            self.daemons[name].terminate()
            try:
                self.daemons[name].wait(20)
            except subprocess.TimeoutExpired:
                self.daemons[name].kill()
                self.daemons[name].wait()
        self.daemons.clear()
        if DEFAULT.is_symlink() and DEFAULT.readlink() == self.base / "etc/slurm.conf":
            DEFAULT.unlink()

    def lose(self, node: str) -> None:
        """Take a node away in the middle of its work, as if its power had failed."""
        self.daemons[node].kill()
        self.daemons[node].wait()
        self._end_steps(node)

    def recover(self, node: str) -> None:
        """Start a node and wait until it takes jobs."""
        self._daemon(node, "root", f"slurmd -D -N {node}")
        self._wait(node, lambda: node in self.query(["sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N"]))

    def query(self, words: Sequence[str]) -> list[str]:
        """The lines that one of Slurm's commands prints."""
        return subprocess.run(words, capture_output=True, text=True, env=self.environment).stdout.split("\n")[:-1]

    def jobs(self, *columns: str) -> list[dict[str, str]]:
        """All jobs ever submitted, oldest first, as sacct knows them: one entry per job, requeued ones once."""
        lines = self.query(["sacct", "-X", "-a", "-n", "-P", "-S", "now-1days", "-o", ",".join(("JobIDRaw", *columns))])
        found = [dict(zip(("JobIDRaw", *columns), line.split("|"), strict=True)) for line in lines]
        return sorted(found, key=lambda job: int(job["JobIDRaw"]))

    @property
    def environment(self) -> dict[str, str]:
        """Variables under which this cluster's commands run."""
        return os.environ | {"SLURM_CONF": f"{self.base}/etc/slurm.conf"}

    def _write(self) -> None:
        """Folders, keys, fake GPUs and configuration."""
        self.base.chmod(0o755)  # the daemons' users must reach their files
        owners = {"etc": "root", "log": "slurm", "run": "slurm", "state": "slurm", "spool": "root"}
        for name, owner in (owners | {"mysql": "mysql", "munge": "munge"}).items():
            (self.base / name).mkdir(parents=True)
            (self.base / name).chmod(0o755)
            shutil.chown(self.base / name, owner)
        ports = free_ports(3 + len(NODES))
        names = dict(zip(("controller", "database_daemon", "database"), ports, strict=False))
        values = {"base": self.base, "host": socket.gethostname().split(".")[0], "password": secrets.token_hex(8)}
        values |= names | {"first": f"n[1-{len(NODES)}]", "ports": f"[{','.join(map(str, sorted(ports[3:])))}]"}
        self.database_port, self.password = names["database"], values["password"]
        subprocess.run(["mknod", self.base / "spool/gpu", "c", "1", "3"], check=True)
        (self.base / "etc/slurm.conf").write_text(SLURM.format(**values))
        (self.base / "etc/gres.conf").write_text(f"Name=gpu Type=fake File={self.base}/spool/gpu\nAutoDetect=off\n")
        (self.base / "etc/cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        self._secret("etc/slurmdbd.conf", SLURMDBD.format(**values).encode(), "slurm")
        self._secret("munge/key", secrets.token_bytes(1024), "munge")
        DEFAULT.parent.mkdir(exist_ok=True)
        DEFAULT.unlink(missing_ok=True)
        DEFAULT.symlink_to(self.base / "etc/slurm.conf")

    def _secret(self, name: str, content: bytes, owner: str) -> None:
        path = self.base / name
        path.write_bytes(content)
        shutil.chown(path, owner, owner)
        path.chmod(0o600)

    def _start_database(self) -> None:
        data = self.base / "mysql"
        install = ["mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={data}", "--skip-test-db"]
        subprocess.run([*install, "--auth-root-authentication-method=normal"], check=True, capture_output=True)
        options = f"--bind-address=127.0.0.1 --port={self.database_port} --socket={data}/socket --datadir={data}"
        options += " --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 --innodb-log-file-size=32M"
        self._daemon("mariadbd", "mysql", f"mariadbd --no-defaults {options}")
        client = ["mariadb", "--no-defaults", "-S", f"{data}/socket", "-u", "root", "-e"]
        self._wait("mariadb", lambda: succeeds([*client, "select 1"]))
        user = "'slurm'@'127.0.0.1'"
        commands = f"create database slurm_acct_db; create user {user} identified by '{self.password}';"
        subprocess.run([*client, f"{commands} grant all on slurm_acct_db.* to {user}"], check=True)

    def _daemon(self, name: str, user: str, command: str) -> None:
        """Start a daemon that ends with this process, whatever ends that."""
        words = ["setpriv", "--reuid", user, "--regid", user, "--init-groups", "--pdeathsig", "TERM", "--"]
        with open(self.base / "log" / f"{name}.out", "ab") as log:
            self.daemons[name] = subprocess.Popen(
                [*words, *command.split()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )

    def _end_steps(self, node: str) -> None:
        """Kill what runs on a node: the daemon of every job step there, and its processes."""
        steps = {
            process for process, words in processes() if words[:1] == [b"slurmstepd:"] and node_of(process) == node
        }
        for process in descendants(steps):
            kill(process)

    def _wait(self, what: str, ready: Callable[[], bool], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                logs = [f"== {path.name}\n{tail(path)}" for path in sorted((self.base / "log").iterdir())]
                raise TimeoutError(f"{what} does not answer\n" + "\n".join(logs))
            time.sleep(0.1)


def succeeds(words: Sequence[str]) -> bool:
    """Whether a command ends with exit code 0."""
    return subprocess.run(words, capture_output=True, timeout=30).returncode == 0


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def tail(path: Path) -> str:
    """The last lines of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-8:])


def node_of(step: int) -> str:
    """Name of the node that a job step's daemon works for, from the variables of its children; empty when unknown."""
    for process in descendants({step}):
        try:
            variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        named = [line for line in variables if line.startswith(b"SLURMD_NODENAME=")]
        if named:
            return named[0].decode().partition("=")[2]
    return ""
