"""What a plan says of a layout: as a stage's file has it, as JSON, and where none fits, why and what would help."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from math import ceil
from typing import Any

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import ConfigError
from megatron_apriel.planning.hardware import Hardware
from megatron_apriel.planning.layouts import GIB, Candidate, Candidates
from megatron_apriel.planning.state_forms import FORMS
from megatron_apriel.quantities import counted, size, three_digits


def recomputation_of(candidate: Candidate) -> str:
    """What is recomputed, of how many layers, and whether their inputs lie on the host."""
    recompute = candidate.config.recompute
    words = [recompute.mode, *[str(recompute.layers)] * (recompute.layers is not None)]
    return ", ".join([*words, *["host"] * (recompute.inputs == "host")])


def memory_of(candidate: Candidate) -> str:
    """What the fullest GPU needs, and the host where something lies there."""
    on_host = f", {size(candidate.memory.on_host)} on the host" if candidate.memory.on_host else ""
    return f"{size(candidate.memory.total)}{on_host}"


def hours_of(candidate: Candidate) -> str:
    """GPU-hours of the whole stage."""
    return "not known" if candidate.gpu_hours is None else three_digits(candidate.gpu_hours)


def yaml_lines(best: Candidate) -> str:
    """The best layout as the stage's file would say it."""
    parts = best.config.parallel.model_dump(mode="json", exclude_defaults=True)
    words = ", ".join(f"{name}: {str(value).lower()}" for name, value in parts.items())
    section = best.config.recompute.model_dump(exclude_defaults=True) or {"mode": best.config.recompute.mode}
    recompute = ", ".join(f"{name}: {value}" for name, value in section.items())
    return f"parallel: {{{words}}}\nrecompute: {{{recompute}}}"


def further_settings(best: Candidate, config: StageConfig) -> list[str]:
    """What the plan chose beside layout and recomputation, as words of the command line."""
    words = []
    if config.optimizer.moments == "auto":
        words.append(f"optimizer.moments={best.config.optimizer.moments}")
    if best.memory.host and config.optimizer.host != best.config.optimizer.host:
        words.append(f"optimizer.host={best.config.optimizer.host}")
    if config.precision.fp8_weights != best.config.precision.fp8_weights:
        words.append(f"precision.fp8_weights={best.config.precision.fp8_weights}")
    return words


def nothing_fits(found: Candidates, gpus: int, gpu: Hardware) -> ConfigError:
    """Why there is no layout to name, and what would help."""
    if not found.accepted:
        reasons = dict.fromkeys(str(error) for _, error in found.refused)
        listing = "\n  ".join("- " + reason.replace("\n", "\n  ") for reason in list(reasons)[:3])
        more = f"\n  and {len(reasons) - 3} more with --show-refused" if len(reasons) > 3 else ""
        return ConfigError(
            f"no layout of this stage can run on {counted(gpus, 'GPU')}, for {counted(len(reasons), 'reason')}.",
            listing + more,
        )
    nearest = found.missing()[0]
    shares = sorted(_on_the_gpu(nearest).items(), key=lambda item: -item[1])
    largest = ", ".join(f"{name} {size(number)}" for name, number in shares[:3])
    host = nearest.memory.on_host
    lacks_host = nearest.memory.total <= nearest.available
    helps = ["more GPUs, over which more is split"]
    if lacks_host:
        helps.insert(0, _more_of_the_host(nearest, gpu))
        if nearest.memory.host_copy:
            helps.insert(0, "checkpoint.background=false, which needs no copy of what is saved")
    # Where states lie on the host because the GPU is full, what spares the one spares the other as well.
    if not lacks_host or nearest.memory.host:
        helps = [*_less_of_the_gpu(nearest, shares[0][0]), *helps, "a GPU with more memory"]
    return ConfigError(
        f"no layout of this stage fits {gpus} {gpu.name}: the nearest, {nearest.label} with"
        f" recompute.mode={nearest.config.recompute.mode}, is over by {size(nearest.over)}"
        f" on pipeline stage {nearest.fullest_stage}.",
        f"It needs {size(nearest.memory.total)} of {size(nearest.available)}: {largest}"
        + (f"; and {size(host)} of {size(nearest.host_available)} of the host." if host else "."),
        f"What helps: {'; '.join(helps)}.",
    )


def _less_of_the_gpu(nearest: Candidate, largest: str) -> Iterator[str]:
    """What spares a GPU's memory, of which ``largest`` takes most."""
    if largest in ("activations", "working", "images"):
        yield "a shorter sequence_length"
    if nearest.config.precision.fp8 != "none":
        yield "precision.fp8=none, which keeps no 8-bit copies of the weights"
        if nearest.config.precision.fp8_weights == "kept":
            yield "precision.fp8_weights=remade, which keeps 8-bit copies of one layer's weights at a time"
    if not nearest.memory.host and largest == "optimizer":
        beside = " and checkpoint.background=false" if nearest.memory.host_copy else ""
        yield f"optimizer.host=auto{beside}, which puts as much of its states as need be into the host's memory"


def _more_of_the_host(nearest: Candidate, gpu: Hardware) -> str:
    """What lets a layout have the host's memory that it needs."""
    host, room = nearest.memory.on_host, gpu.host_memory * GIB
    needs = []
    if nearest.host_available < room:
        of_a_machine = ceil(host * min(nearest.layout.world_size, gpu.gpus_per_node) / 1e9)
        needs.append(f"optimizer.host_memory={of_a_machine}GB")
    if host > room:
        needs.append(f"a host with {size(host)} for that (--set host_memory={ceil(host / GIB)})")
    return " and ".join(needs)


def _on_the_gpu(candidate: Candidate) -> dict[str, float]:
    return {name: number for name, number in asdict(candidate.memory).items() if not name.startswith("host")}


def record(candidate: Candidate) -> dict[str, Any]:
    """A candidate as JSON: settings, bytes and seconds."""
    return {
        "parallel": candidate.config.parallel.model_dump(mode="json"),
        "recompute": candidate.config.recompute.mode,
        "recomputed_layers": candidate.config.recompute.layers,
        "inputs": candidate.config.recompute.inputs,
        "optimizer_host": candidate.config.optimizer.host,
        "optimizer_forms": {name: getattr(candidate.config.optimizer, name) for name in FORMS},
        "fp8_weights": candidate.config.precision.fp8_weights,
        "data": candidate.layout.data,
        "layers": candidate.layers,
        "fits": candidate.over <= 0,
        "over_bytes": candidate.over,
        "memory_bytes": {**asdict(candidate.memory), "total": candidate.memory.total},
        "fullest_stage": candidate.fullest_stage,
        "step_seconds": {**asdict(candidate.time), "total": candidate.time.total},
        "tokens_per_second_per_gpu": candidate.tokens_per_second,
        "teraflops_per_gpu": candidate.teraflops,
        "doubts": [doubt.name.lower() for doubt in candidate.doubts],
        "gpu_hours": candidate.gpu_hours,
    }
