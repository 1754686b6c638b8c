"""What `make setup` runs, with stand-ins for interpreters: which it takes, and what it says if none will do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
NEEDED = ("bash", "dirname", "cat", "cksum", "tr", "rm", "touch", "mkdir", "chmod", "env", "grep", "tail", "cut",
          "sleep")  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the script, and a PATH with the shell's own commands only."""
    root, binaries = tmp_path / "project", tmp_path / "bin"
    (root / "tools").mkdir(parents=True)
    binaries.mkdir()
    shutil.copy(ROOT / "tools" / "setup_environment.sh", root / "tools")
    for name in ("setup.py", "pyproject.toml", "constraints.txt"):
        (root / name).write_text("", encoding="utf-8")
    for name in NEEDED:
        found = shutil.which(name)
        assert found
        (binaries / name).symlink_to(found)
    return root


def interpreter(project: Path, name: str, suits: bool) -> Path:
    """A stand-in that makes a .venv whose own python records what it was asked to do."""
    file = project.parent / "bin" / name
    file.write_text(
        "#!/usr/bin/env bash\n"
        f'if [ "$1" = -c ]; then exit {0 if suits else 1}; fi\n'
        f'if [ "$1" = --version ]; then echo "Python of {name}"; exit; fi\n'
        "mkdir -p .venv/bin; printf '#!/usr/bin/env bash\\necho \"$@\" >>.venv/asked\\n' >.venv/bin/python\n"
        "chmod +x .venv/bin/python\n",
        encoding="utf-8",
    )
    file.chmod(0o755)
    return file


def run(project: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(project.parent / "bin"), "HOME": str(project.parent), **variables}
    return subprocess.run(
        ["bash", str(project / "tools" / "setup_environment.sh")],
        env=environment,
        cwd=os.sep,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(
    any(Path(place).exists() for place in ("/usr/local/bin/python3.12", "/opt/python")),
    reason="a Python 3.12 stands where the script looks",
)
def test_without_a_new_enough_python_it_says_what_to_install(project: Path) -> None:
    interpreter(project, "python3", suits=False)
    result = run(project)
    assert result.returncode == 1
    assert "no Python 3.12 or 3.13 with venv and pip was found (python3 is Python of python3)" in result.stderr
    for way in ("apt install python3.12 python3.12-venv", "pyenv install 3.12", "uv", "make setup PYTHON="):
        assert way in result.stderr
    assert not (project / ".venv").exists()


def test_it_prefers_the_tested_version_and_installs_the_pinned_set_once(project: Path) -> None:
    interpreter(project, "python3", suits=False)
    interpreter(project, "python3.12", suits=True)
    first = run(project)
    assert first.returncode == 0, first.stderr
    assert "creating .venv with Python of python3.12" in first.stdout
    asked = (project / ".venv" / "asked").read_text(encoding="utf-8")
    assert "--constraint constraints.txt --editable .[images,wandb,serve,test]" in asked
    second = run(project)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert (project / ".venv" / "asked").read_text(encoding="utf-8") == asked


def test_changed_requirements_are_installed(project: Path) -> None:
    interpreter(project, "python3.12", suits=True)
    run(project)
    (project / "constraints.txt").write_text("torch==2.14\n", encoding="utf-8")
    assert "installing the pinned set" in run(project).stdout
    assert run(project).stdout == ""


def test_an_interpreter_can_be_named(project: Path) -> None:
    mine = interpreter(project, "mine", suits=True)
    interpreter(project, "python3.12", suits=True)
    assert "Python of mine" in run(project, PYTHON=str(mine)).stdout


def test_it_says_what_it_is_at_while_it_installs(project: Path) -> None:
    """Most of the time goes into a few downloads, which pip alone would make in silence."""
    file = interpreter(project, "python3.12", suits=True)
    sleep = shutil.which("sleep")
    assert sleep
    install = (
        "#!/usr/bin/env bash\n"
        'while [ "$1" != --log ]; do shift; done\n'
        "printf '10:00 Collecting torch\\n10:01   Downloading torch-2.whl (900 MB)\\n10:02 more\\n' >\"$2\"\n"
        f"{sleep} 2\n"
    )
    (project / "install").write_text(install, encoding="utf-8")
    file.write_text(
        "#!/usr/bin/env bash\n"
        'if [ "$1" = -c ] || [ "$1" = --version ]; then exit; fi\n'
        'mkdir -p .venv/bin; while read -r line; do echo "$line"; done <install >.venv/bin/python\n'
        "chmod +x .venv/bin/python\n",
        encoding="utf-8",
    )
    clock = project.parent / "bin" / "sleep"
    clock.unlink()
    clock.write_text(f"#!/usr/bin/env bash\nexec {sleep} 0.3\n", encoding="utf-8")
    clock.chmod(0o755)
    result = run(project)
    assert result.returncode == 0, result.stderr
    assert " s: Downloading torch-2.whl (900 MB)\n" in result.stdout
    assert result.stdout.endswith("source .venv/bin/activate\n"), "nothing goes on behind it"
