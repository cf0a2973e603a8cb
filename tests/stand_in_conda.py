"""A stand-in for conda, for tests without a conda channel: virtual environments from an environment file's own pins.

Every pin is installed by linking the files of the same version from the environment that runs the tests, as pip
recorded them; nothing that the file does not name gets in.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import venv
from importlib.metadata import distribution
from itertools import pairwise
from pathlib import Path

import yaml

ACTIVATE = 'export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"\n'


def install_stand_in(folder: Path) -> Path:
    """Write ``bin/conda`` and ``bin/activate`` into a folder; the folder of the programs, for ``PATH``."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(ACTIVATE)
    (programs / "conda").write_text(
        f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "{folder}" "$@"\n'
    )
    (programs / "conda").chmod(0o755)
    return programs


def create(file: Path, prefix: Path) -> None:
    """An environment with the pins of a file, and nothing else."""
    *_, packages = yaml.safe_load(file.read_text())["dependencies"]
    venv.create(prefix, symlinks=True)
    (site_packages,) = prefix.glob("lib/python*/site-packages")
    for pin in packages["pip"]:
        name, _, version = pin.partition("==")
        found = distribution(name)
        if found.version.split("+")[0] != version:
            raise SystemExit(f"{file}: {pin}, but the environment of the tests has {found.version}; run make test")
        for path in found.files or []:
            if ".." not in path.parts:  # commands of packages: the stages use none
                link(Path(str(found.locate_file(path))), site_packages / path)


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy on another disk; files that are gone since (caches of bytecode) are left out."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        return
    except OSError:
        shutil.copy2(source, target)


def main(root: str, *words: str) -> None:
    """The commands that Snakemake gives to conda."""
    if words == ("info", "--json"):
        print(json.dumps({"conda_prefix": root, "platform": "linux-64"}))
    elif words == ("--version",):
        print("conda 24.11.0")
    elif words[:1] == ("config",):
        print(json.dumps({"get": {"channel_priority": "strict"}}))
    elif words[:2] == ("env", "create"):
        options = dict(pairwise(words))
        create(Path(options["--file"]), Path(options["--prefix"]))
    elif words[:1] != ("clean",):
        raise SystemExit(f"stand-in for conda: unknown command {' '.join(words)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
