"""Megatron-Core training of Pixtral-shaped vision-language models by the Apriel-1.5 recipe.

The package is layered; imports run downward only:

    inputs, concealed, errors       how a file is opened; what is not printed; what can go wrong
    terminal, tables, json_text     printable lines; printable tables; JSON of a model's files
    architecture                    shapes of the model
    outputs, locks, progress, flops whole-or-absent results; locks; progress on a terminal; the FLOPs rule
    batch, config, surgery          the typed batch; the stage schema; byte-level checkpoint edits
    parallel                        rank arithmetic, process groups, Megatron Core on CPU
    model | data, visual_tasks      rooms that do not know each other
    checkpoint                      names, sharded loading, export, resumable training state
    train                           the one loop

``tools/`` and ``examples/`` stand above the package. ``config`` and ``surgery`` never import torch, so that command
lines answer at once and run on a login node.
"""

__version__ = "0.1.0"
