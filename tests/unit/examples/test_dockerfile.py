"""What can be checked of the image without a container engine."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def instructions() -> list[tuple[str, str]]:
    """Instruction and arguments of each line, continued lines joined, comments removed."""
    text = "\n".join(line for line in (ROOT / "docker" / "Dockerfile").read_text().splitlines() if line[:1] != "#")
    joined = re.sub(r"\\\n\s*", " ", text)
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines()) if word]


def values(name: str) -> list[str]:
    return [rest for word, rest in instructions() if word == name]


def test_base_image() -> None:
    assert values("FROM") == ["nvcr.io/nvidia/pytorch:${BASE_TAG}"]
    (tag,) = [value.split("=")[1] for value in values("ARG") if value.startswith("BASE_TAG=")]
    year, month = re.fullmatch(r"(\d\d)\.(\d\d)-py3", tag).groups()  # type: ignore[union-attr]
    # PyTorch 2.11, the oldest that setup.py allows, came into these images in 2026.
    assert (int(year), int(month)) >= (26, 5)


def test_does_not_run_as_root() -> None:
    assert values("USER") == ["${UID}:${GID}"]
    assert {"UID=1000", "GID=1000"} <= set(values("ARG"))
    last_run = max(index for index, (word, _) in enumerate(instructions()) if word == "RUN")
    assert [word for word, _ in instructions()].index("USER") > last_run, (
        "everything after USER would fail or be root's"
    )


def test_the_images_torch_stays() -> None:
    installs = [value for value in values("RUN") if "pip install" in value]
    assert installs and "torch" in next(value for value in values("RUN") if "image-constraints.txt" in value)
    constrained = next(
        index for index, (word, rest) in enumerate(instructions()) if word == "ENV" and "PIP_CONSTRAINT" in rest
    )
    first_install = next(index for index, (_, rest) in enumerate(instructions()) if "pip install" in rest)
    assert constrained < first_install
    assert "was replaced" in installs[-1], "the build must fail if a version of the image was replaced"
    assert not any("transformer" in value or "torch" in value for value in installs[0].split("pip install")[1:])


def test_project_with_dali_and_attention_is_installed() -> None:
    assert any('".[images,flash,' in value for value in values("RUN"))


def test_no_registry_of_packages_and_no_health_check() -> None:
    for path in [*(ROOT / "docker").iterdir(), ROOT / ".dockerignore"]:
        text = path.read_text()
        for host in ("pypi", "pythonhosted", "--index-url", "--extra-index-url", "pytorch.org"):
            assert host not in text, f"{path.name}: {host}"
    assert "HEALTHCHECK" not in dict(instructions())


def test_copied_files_exist_and_data_stay_out() -> None:
    for value in values("COPY"):
        *sources, _ = value.split()
        assert all((ROOT / source).exists() for source in sources)
    assert {".git", ".venv", "runs", "data", "models"} <= set((ROOT / ".dockerignore").read_text().splitlines())
