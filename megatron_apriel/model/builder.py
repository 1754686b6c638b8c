"""From an architecture and a layout to this rank's chunks of the model."""

from __future__ import annotations

from megatron.core import parallel_state

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.model.apriel import AprielModel
from megatron_apriel.model.options import ModelOptions, decoder_config, tower_config
from megatron_apriel.parallel import user_buffers
from megatron_apriel.parallel.layout import Layout


def build_model(architecture: Architecture, how: StageConfig | ModelOptions, layout: Layout) -> list[AprielModel]:
    """This rank's model chunks, with initial weights on this rank's device; one unless the pipeline is interleaved.

    Process groups must exist (``parallel.groups.initialized``).

    Args:
        architecture: shapes of the model.
        how: a stage's configuration, or just the options that concern the model.
        layout: where this rank stands.

    Raises:
        ConfigError: for combinations that cannot be run here.
    """
    options = how if isinstance(how, ModelOptions) else ModelOptions.from_stage(how)
    config = decoder_config(architecture.decoder, options, layout)
    if options.overlapped_tokens is not None:
        shape = (options.overlapped_tokens, architecture.decoder.hidden_size)
        user_buffers.make(shape, layout.tensor, options.dtype, in_8_bits=options.fp8 != "none")
    vision_config = tower_config(architecture.tower, options) if architecture.tower else None
    stage = parallel_state.get_pipeline_model_parallel_rank()
    return [
        AprielModel(
            architecture,
            config,
            vision_config,
            options.chosen_layers(),
            decoder_layers=layout.layers_of(architecture.decoder.num_layers, stage, chunk),
            pre_process=layout.holds_input(stage, chunk),
            post_process=layout.holds_output(stage, chunk),
            vp_stage=chunk if layout.virtual > 1 else None,
        )
        for chunk in range(layout.virtual)
    ]
