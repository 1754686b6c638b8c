"""Megatron-Core training of Pixtral-shaped vision-language models by the Apriel-1.5 recipe.

A room may import only rooms above it in this list, and no file imports in a circle::

    megatron_apriel/
      errors.py concealed.py              errors in words that help; secrets that are never printed
      inputs.py locks.py                  regular files in; locks between processes
      outputs.py output_files.py          directories and files out, whole or absent
      terminal.py tables.py progress.py   what a person sees: lines, tables, progress
      quantities.py command_line.py       what a person writes: 4M, 5GB, arguments
      workers.py                          work shared out over forked processes, which end with their parent
      config/            the one schema of a stage: loading, overriding, schedule, retention
      formats/           what lies on disk: architecture, FLOPs rule, tensor names, safetensors, JSON, run.json
      surgery/           upscaling and averaging by byte ranges
      batch.py           the typed batch
      parallel/          rank arithmetic, layouts, groups, agreement between ranks, Megatron Core on CPU
      data/              from raw files to batches
        raw/             records of every published form, limits of reading them, what was wrong with them
          fields/        what becomes of each field: followed, refused, counted
          pictures/      where a record's pictures stand, their bytes and pixels
          turns/         speakers, parts, reasoning, tool calls
          records/       shapes of records, put together into documents
          files/         JSON, Parquet, tars, saved data sets, directories
        visual_tasks/    questions made of raw images, each with its check
        corpus/          tokens, chat format, preparing, the corpus on disk
        loading/         packing, mixture, images, batches
      model/             decoder, tower, projector, assembly, freezing, what can be done with the head
      generate/          answers from a model: a server that speaks OpenAI's protocol, or transformers
        engines/         servers of others, started and compared with transformers
      grading/           from an answer to a verdict: right, wrong or none; the sandbox for programs
      evaluate/          benchmarks, asking, scoring, the table and its page
      checkpoint/        loading into shards, export, conversion, resumable state
      planning/          memory, time, layouts, the dry run
      train/             trainer, step, loop, optimizer, metrics
        objectives/      what a stage optimises, one file each
      testing/           importable helpers of the tests

The files at the top are the ground, which every room stands on. ``data/loading`` and ``model`` do not know each other.
``config``, ``formats``, ``surgery``, ``planning``, ``grading``, ``evaluate``, ``generate`` without the file that runs
transformers, and all of ``data`` but ``loading`` import no torch, so that command lines answer at once and run on a
login node. ``tools/`` and ``examples/`` stand above the package. ``tests/unit/test_house_rules.py`` holds all of this.
"""

__version__ = "0.1.0"
