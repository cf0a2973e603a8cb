"""Resolve the pins of all environments: requirements.lock, requirements-test.lock and one file per stage.

`make lock` runs this; it needs a package index. Nothing here is installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

FOLDER = Path(__file__).resolve().parent
HEADER = "# Made by `make lock` from envs/stages.yaml; edit that file, not this one.\n"


def resolve(requirements: list[str], constraints: list[str]) -> list[str]:
    """Exact pins of the requirements and all that they need, sorted by name.

    Packages that only the CUDA build of torch brings are left out: torch itself pins them.
    """
    with tempfile.TemporaryDirectory() as folder:
        constraint_file = Path(folder) / "constraints.txt"
        constraint_file.write_text("\n".join(constraints) + "\n")
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), "--constraint", str(constraint_file), *requirements]
        subprocess.run(command, check=True)
        installed = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    pins = [f"{item['name']}=={item['version'].split('+')[0]}" for item in installed]
    return sorted((pin for pin in pins if not pin.startswith(("nvidia-", "cuda-", "triton=="))), key=str.lower)


def main() -> None:
    """Resolve everything once, then every stage within those pins."""
    stages = yaml.safe_load((FOLDER / "stages.yaml").read_text())
    runtime = sorted({*stages["workflow"], *(name for needs in stages["stages"].values() for name in needs)})
    pins = resolve(runtime, [])
    test_pins = [pin for pin in resolve(runtime + stages["tests"], pins) if pin not in pins]
    (FOLDER.parent / "requirements.lock").write_text(HEADER + "\n".join(pins) + "\n")
    (FOLDER.parent / "requirements-test.lock").write_text(HEADER + "\n".join(test_pins) + "\n")
    resolved: dict[tuple[str, ...], list[str]] = {}
    for stage, needs in stages["stages"].items():
        if tuple(needs) not in resolved:
            resolved[tuple(needs)] = resolve(needs, pins)
        write_environment(FOLDER / f"{stage}.yaml", stages["python"], resolved[tuple(needs)])


def write_environment(path: Path, python: str, pins: list[str]) -> None:
    """A conda environment of Python and pip from conda-forge and everything else as pip pins."""
    lines = [HEADER.rstrip(), "channels:", "  - conda-forge", "  - nodefaults", "dependencies:"]
    lines += [f"  - python={python}", "  - pip", "  - pip:", *(f"      - {pin}" for pin in pins)]
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
