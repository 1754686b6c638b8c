"""Which moments ``optimizer.moments=auto`` means: of the three forms the one that loses least and fits. No torch.

Exact ones come first, also where much of them lies on the host and an update is longer for it. Nothing narrower is
taken for speed: who wants that says so, and a plan can show what it would give.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationError

from megatron_apriel.config.choices import MOMENTS, Moments
from megatron_apriel.config.explain import config_error
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.config.training_sections import OptimizerSection
from megatron_apriel.errors import ConfigError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.run_record import RunState
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.changes import saved_forms
from megatron_apriel.planning.memory import rank_memory

SMALLER: dict[str, dict[str, str]] = {
    "16-bit moments": {"moments": "bfloat16"},
    "8-bit moments, 24-bit masters": {"moments": "int8", "master": "24bit"},
    "the same, 24-bit gradients": {"moments": "int8", "master": "24bit", "gradients": "24bit"},
}
"""Settings of the optimizer that make its numbers smaller, from those that lose least, as a plan compares them."""


def with_moments(config: StageConfig, moments: Moments) -> StageConfig:
    """The stage with moments in this form."""
    return config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"moments": moments})})


def allowed(config: StageConfig) -> Iterator[StageConfig]:
    """The stage with each form that its ``moments`` allow, from the exact one to the smallest."""
    for moments in MOMENTS if config.optimizer.moments == "auto" else [config.optimizer.moments]:
        yield with_moments(config, moments)


def with_smaller_states(config: StageConfig) -> Iterator[tuple[str, StageConfig | ConfigError]]:
    """The stage with each of :data:`SMALLER`, by name; or why a run with that would be refused."""
    for name, forms in SMALLER.items():
        optimizer = config.optimizer.model_copy(update=forms)
        try:
            OptimizerSection.model_validate(optimizer.model_dump())
        except ValidationError as error:
            yield name, config_error(error, name, {}, {}, OptimizerSection)
        else:
            yield name, config.model_copy(update={"optimizer": optimizer})


def chosen_moments(
    config: StageConfig,
    architecture: Architecture,
    layout: Layout,
    available: float,
    host_available: float,
    begun: RunState | None = None,
) -> StageConfig:
    """The stage with moments of the first form that is allowed and fits; of the smallest where none does.

    Args:
        config: the stage.
        architecture: the model.
        layout: the layout; already checked against both.
        available: bytes of a GPU that are left to the program.
        host_available: bytes of the host for each rank.
        begun: state of the run that the stage resumes: it keeps what was chosen for it, also where more would fit now.
    """
    if begun is not None and config.optimizer.moments == "auto":
        saved = saved_forms(begun.config.model_dump())["moments"]
        # Anything else there is refused when all settings are compared.
        return with_moments(config, saved if saved in MOMENTS else MOMENTS[0])
    for stage in allowed(config):
        ranks = (rank_memory(stage, architecture, layout, rank, available) for rank in range(layout.pipeline))
        # Shares on the host are rounded up by a byte.
        if all(memory.total <= available + 1 and memory.on_host <= host_available for memory in ranks):
            break
    return stage
