"""scripts/check_prerequisites.sh names each thing that is missing and the line that installs it.

The machine is faked: PATH holds one folder with the tools that the case wants to be there.
Needs sh and coreutils.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts/check_prerequisites.sh"
TOOLS = ("sh", "id", "mktemp", "rm", "sed")
COMPILER = "#!/bin/sh\nexit 0\n"
OLD_COMPILER = "#!/bin/sh\necho 'error: unrecognized option -std=c++20' >&2\nexit 1\n"

PYTHON = """#!/bin/sh
# Answers the script's questions as a Python of this version with or without headers and venv would.
case "$2" in
    *sys.exit*) exit {too_old} ;;
    *sysconfig*) echo {header} ;;
    *ensurepip*) exit {no_venv} ;;
    *print*) echo {version} ;;
esac
"""


class Machine:
    """A PATH of its own."""

    def __init__(self, root: Path) -> None:
        self.bin = root / "bin"
        self.bin.mkdir()
        self.header = root / "Python.h"
        self.header.touch()
        for tool in TOOLS:
            real = shutil.which(tool)
            assert real, tool
            (self.bin / tool).symlink_to(real)
        self.add("make", "#!/bin/sh\n")
        self.add("g++", COMPILER)
        self.add_python()

    def add(self, name: str, text: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def remove(self, name: str) -> None:
        (self.bin / name).unlink()

    def add_python(
        self, name: str = "python3", version: str = "3.11", too_old: int = 0, no_venv: int = 0
    ) -> None:
        text = PYTHON.format(version=version, too_old=too_old, no_venv=no_venv, header=self.header)
        self.add(name, text)

    def run(self, **environment: str) -> tuple[int, str]:
        keep = {k: v for k, v in os.environ.items() if k == "TMPDIR"}
        done = subprocess.run(
            [str(self.bin / "sh"), str(SCRIPT)],
            env={**keep, "PATH": str(self.bin), **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_complete_machine(machine: Machine) -> None:
    assert machine.run() == (0, "")


def test_this_machine() -> None:
    done = subprocess.run(["sh", str(SCRIPT)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_make(machine: Machine) -> None:
    machine.remove("make")
    status, said = machine.run()
    assert status == 1
    assert "missing: make" in said and "apt-get install -y make" in said


def test_no_compiler(machine: Machine) -> None:
    machine.remove("g++")
    status, said = machine.run()
    assert status == 1
    assert "missing: a C++ compiler" in said and "apt-get install -y g++" in said


def test_clang_alone_is_enough(machine: Machine) -> None:
    machine.remove("g++")
    machine.add("clang++", COMPILER)
    assert machine.run() == (0, "")


def test_compiler_without_cpp20(machine: Machine) -> None:
    machine.add("g++", OLD_COMPILER)
    status, said = machine.run()
    assert status == 1
    assert "builds C++20 programs (g++ does not" in said
    assert "unrecognized option" in said  # the compiler's own words


def test_cxx_is_used_and_may_hold_a_launcher(machine: Machine) -> None:
    machine.add("g++", OLD_COMPILER)
    machine.add("newer", COMPILER)
    assert machine.run(CXX="newer -pipe") == (0, "")
    status, said = machine.run(CXX="absent")
    assert status == 1 and "CXX=absent is not a program" in said


def test_no_python(machine: Machine) -> None:
    machine.remove("python3")
    status, said = machine.run()
    assert status == 1
    assert "missing: Python 3.10 or newer" in said
    assert "apt-get install -y python3 python3-dev python3-venv" in said


def test_old_python(machine: Machine) -> None:
    machine.add_python(version="3.9", too_old=1)
    status, said = machine.run()
    assert status == 1
    assert "python3 is 3.9" in said and "make PYTHON=python3.11" in said


def test_no_headers(machine: Machine) -> None:
    machine.header.unlink()
    status, said = machine.run()
    assert status == 1
    assert "headers of Python 3.11" in said and "apt-get install -y python3-dev" in said


def test_no_venv(machine: Machine) -> None:
    machine.add_python(no_venv=1)
    status, said = machine.run()
    assert status == 1
    assert "venv module" in said and "apt-get install -y python3-venv" in said


def test_named_interpreter(machine: Machine) -> None:
    machine.remove("python3")
    machine.add_python("python3.12", version="3.12", no_venv=1)
    machine.header.unlink()
    status, said = machine.run(PYTHON="python3.12")
    assert status == 1
    assert "apt-get install -y python3.12-dev" in said
    assert "apt-get install -y python3.12-venv" in said


def test_everything_missing_is_named_at_once(machine: Machine) -> None:
    for tool in ("make", "g++", "python3"):
        machine.remove(tool)
    status, said = machine.run()
    assert status == 1
    assert said.count("missing: ") == 3
    assert said.splitlines()[-1].endswith(" install -y make g++ python3 python3-dev python3-venv")
