"""A real container engine for tests: Podman with a storage of its own, and images made from folders.

Nothing can be pulled where tests run, so an
image is a folder (:func:`busybox_root`, or one made by ``debootstrap``) brought in by :meth:`Engine.image_of`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("podman", "runc", "busybox-static")
CONTAINERS_CONF = """[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
netns = "none"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
tmp_dir = "{folder}/tmp"
"""
STORAGE_CONF = """[storage]
driver = "vfs"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
"""


@dataclass(frozen=True)
class Engine:
    """Podman with its own storage; as ``docker``, too."""

    folder: Path

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables by which ``podman`` and ``docker`` are this engine."""
        return {
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "PATH": f"{self.folder / 'commands'}:{os.environ['PATH']}",
        }

    def run(self, *arguments: str, **further: Any) -> subprocess.CompletedProcess[str]:
        """Run ``podman`` with these arguments."""
        options = {"capture_output": True, "text": True, "timeout": 300} | further
        return subprocess.run(["podman", *arguments], env=os.environ | self.variables, **options)

    def image_of(self, root: Path, name: str, changes: Sequence[str] = ()) -> str:
        """Make an image from the files of a folder; its digest (``sha256:…``).

        Parameters
        ----------
        name : repository and tag.
        changes : instructions of a Dockerfile, e.g. ``ENTRYPOINT ["/entry"]``.
        """
        words = [word for change in changes for word in ("--change", change)]
        with subprocess.Popen(["tar", "--directory", root, "--create", "."], stdout=subprocess.PIPE) as tar:
            made = self.run("import", *words, "-", name, stdin=tar.stdout)
        assert made.returncode == tar.returncode == 0, made.stderr
        return self.run("image", "inspect", "--format", "{{.Digest}}", name).stdout.strip()


def busybox_root(folder: Path) -> Path:
    """A root file system of two megabytes: a shell and the usual commands (Debian's ``busybox-static``)."""
    (folder / "bin").mkdir(parents=True)
    (folder / "tmp").mkdir(mode=0o777)
    shutil.copy("/bin/busybox", folder / "bin/busybox")
    for command in subprocess.check_output(["/bin/busybox", "--list"], text=True).split():
        if command != "busybox":
            (folder / "bin" / command).symlink_to("busybox")
    return folder


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The engine; skips with the reason where none can run. As root on Debian the packages are installed."""
    _installed()
    # Podman refuses long paths for its sockets: not below pytest's folder
    folder = Path(tempfile.mkdtemp(prefix="podman-"))
    (folder / "containers.conf").write_text(CONTAINERS_CONF.format(folder=folder))
    (folder / "storage.conf").write_text(STORAGE_CONF.format(folder=folder))
    (folder / "commands").mkdir()
    (folder / "commands/docker").symlink_to(shutil.which("podman") or "")
    engine = Engine(folder)
    try:
        engine.image_of(busybox_root(folder / "root"), "localhost/trial:1")
        trial = engine.run("run", "--rm", "localhost/trial:1", "true")
        assert trial.returncode == 0, trial.stderr
    except AssertionError as error:
        pytest.skip(f"no container can be run here: {str(error).strip()[-300:]}")
    yield engine
    engine.run("rm", "--all", "--force")
    engine.run("rmi", "--all", "--force")
    shutil.rmtree(folder, ignore_errors=True)


def _installed() -> None:
    if shutil.which("podman") and Path("/bin/busybox").is_file():
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip(f"no container engine: {', '.join(PACKAGES)} are absent, and only root installs them (Debian)")
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES]
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update"], capture_output=True, env=quiet)
    ended = subprocess.run(install, capture_output=True, text=True, env=quiet)
    if ended.returncode:
        pytest.skip(f"no container engine: {' '.join(install)} failed: {ended.stderr.strip()[-300:]}")
