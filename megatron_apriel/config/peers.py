"""What other trainers call a setting, what it is here, and how its value converts.

Words of transformers' Trainer and TRL, ms-swift (its Megatron side too), LLaMA-Factory, axolotl and torchtitan. The
table answers a wrong key in a stage's file and on the command line, and is the one of ``docs/coming_from.md``
(:mod:`megatron_apriel.config.reference`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MOST_FOUND = 20
"""Words that are looked for in a section that is not one of ours."""


@dataclass(frozen=True)
class Word:
    """One row.

    Attributes:
        names: what others call it; torchtitan's with its section.
        here: dotted names of our settings, or what has it besides a stage; none where there is no such thing.
        how: how the value converts, or why there is none.
        same: the value can be given as it is.
    """

    names: tuple[str, ...]
    here: tuple[str, ...]
    how: str
    same: bool = False


def _row(names: str, here: str, how: str) -> Word:
    return Word(tuple(names.split()), tuple(here.split()), how)


def _same(names: str, here: str, how: str = "The same value.") -> Word:
    return Word(tuple(names.split()), (here,), how, same=True)


_FULL = "All weights of a part train, or none (train.tower, train.projector, train.decoder)."
_LAYOUT = (
    "Megatron Core's layout replaces it: parallel.tensor, pipeline, context; the optimizer's state is always divided."
)

WORDS: tuple[Word, ...] = (
    # model, data, result
    _same(
        "model_name_or_path model base_model model_id checkpoint.initial_load_path model.hf_assets_path",
        "init_from",
        "A local directory; nothing is downloaded.",
    ),
    _same("output_dir job.dump_folder save dump_folder export_dir", "output", "The result is in OUTPUT/final."),
    _row(
        "dataset datasets dataset_name dataset_dir train_file data_path training.dataset training.dataset_path"
        " dataset_path",
        "mixture[].corpus",
        "A directory that tools/prepare_data.py made of the raw files; several make a mixture with weights.",
    ),
    _row(
        "interleave_probs mix_strategy dataset_probs interleave_prob",
        "mixture[].weight",
        "Shares of the tokens, not of the samples; they sum to 100%.",
    ),
    _row(
        "val_dataset eval_dataset val_size val_set_size split_dataset_ratio test_datasets validation.dataset",
        "validation.corpora",
        "A share is held out when data are prepared: tools/prepare_data.py --held-out 2% writes a second corpus.",
    ),
    _row(
        "max_samples dataset_sample",
        "",
        "Not in a stage: tools/prepare_data.py --limit N, or a source's share of the tokens.",
    ),
    _row(
        "template chat_template model_type template_type",
        "",
        "Not chosen: conversations are rendered by one chat format, which the result has as its template"
        " (docs/data.md).",
    ),
    _row(
        "train_on_inputs train_on_prompt assistant_only_loss completion_only_loss loss_scale mask_history"
        " train_on_responses_only",
        "mixture[].loss",
        "responses learns the assistant's turns, all every text token. Single turns: a mark in the record.",
    ),
    _row(
        "max_length max_seq_length cutoff_len sequence_len seq_len seq_length model_max_length training.seq_len",
        "sequence_length",
        "The same number of tokens, but of a pack of whole documents. What happens to longer ones:"
        " mixture[].long_documents.",
    ),
    _row(
        "truncation_strategy overlength_handling",
        "mixture[].long_documents",
        "delete: drop. right: truncate. split: split. raise: error, the default. left is not here.",
    ),
    _row(
        "packing sample_packing neat_packing padding_free group_by_length pad_to_sequence_len eval_packing",
        "",
        "Always on: documents are packed whole, and none sees another.",
    ),
    _row("streaming dataset_num_proc preprocessing_num_workers overwrite_cache dataset_prepared_path", "",
         "Not in a stage: data are prepared once; tools/prepare_data.py --workers N."),
    _row("dataloader_num_workers dataloader_pin_memory", "images.threads", "Decoding threads of each rank."),
    _row(
        "max_pixels image_max_pixels",
        "images.max_pixels",
        "Not the same: a larger image is refused there. The size that the model sees is its processor's longest side.",
    ),
    # length and batch
    _row(
        "per_device_train_batch_size micro_batch_size gradient_accumulation_steps train_batch_size batch_size"
        " training.local_batch_size local_batch_size per_device_batch_size",
        "batch_tokens",
        "per-device batch x accumulation x data-parallel GPUs x sequence length. A micro-batch is one packed sequence;"
        " accumulation follows from the number of GPUs.",
    ),
    _row(
        "global_batch_size training.global_batch_size",
        "batch_tokens",
        "Global batch x sequence length.",
    ),
    _row(
        "num_train_epochs num_epochs max_epochs n_epochs",
        "epochs",
        "The same number, in place of tokens; in a mixture, passes over the source that its weight uses up first.",
    ),
    _row(
        "max_steps train_iters training.steps",
        "tokens",
        "Steps x batch_tokens.",
    ),
    # optimizer
    _same("learning_rate lr optimizer.lr", "optimizer.peak"),
    _row(
        "vit_lr vision_lr aligner_lr projector_lr mm_projector_lr embedding_lr",
        "train.tower train.projector train.decoder",
        "A factor on optimizer.peak: the part's rate divided by it.",
    ),
    _row(
        "min_lr lr_scheduler.min_lr_factor min_lr_rate cosine_min_lr_ratio lr_scheduler_kwargs",
        "optimizer.minimum",
        "A fraction of optimizer.peak, as 10%: a rate is divided by it.",
    ),
    _row(
        "lr_scheduler_type lr_scheduler lr_decay_style lr_scheduler.decay_type",
        "optimizer.decay",
        "cosine, linear and constant. constant_with_warmup: constant.",
    ),
    _same("warmup_ratio lr_warmup_fraction", "optimizer.warmup", "The same fraction of the steps."),
    _row(
        "warmup_steps lr_scheduler.warmup_steps lr_warmup_iters num_warmup_steps",
        "optimizer.warmup",
        "A fraction: warm-up steps divided by all steps.",
    ),
    _same("weight_decay optimizer.weight_decay", "optimizer.weight_decay", "The same value; its default is 0.1 here."),
    _same("max_grad_norm training.max_norm clip_grad gradient_clipping max_norm", "optimizer.clip"),
    _row(
        "adam_beta1 adam_beta2 optimizer.beta1 optimizer.beta2 beta1 beta2",
        "optimizer.betas",
        "Both in one list, as [0.9, 0.95], the default; theirs is often [0.9, 0.999].",
    ),
    _same("adam_epsilon optimizer.eps adam_eps", "optimizer.eps"),
    _row("optim optimizer.name optimizer_type optim_args", "", "Always AdamW, its state divided over the ranks."),
    # what trains
    _row(
        "lora_rank lora_r lora_alpha lora_dropout lora_target lora_target_modules target_modules use_peft use_lora"
        " adapter peft_type finetuning_type train_type tuner_type tuner_backend load_in_4bit load_in_8bit"
        " quantization_bit quant_bits use_dora use_rslora lora_modules_to_save modules_to_save adapters",
        "",
        f"Not here: no LoRA, no other adapters. {_FULL}",
    ),
    _row(
        "freeze_vit freeze_vision_tower freeze_vision freeze_vision_model",
        "train.tower",
        "true: frozen. false: a factor on the learning rate, as 1.0.",
    ),
    _row(
        "freeze_aligner freeze_multi_modal_projector freeze_projector freeze_mm_projector",
        "train.projector",
        "true: frozen. false: a factor on the learning rate, as 1.0.",
    ),
    _row(
        "freeze_llm freeze_language_model freeze_decoder",
        "train.decoder",
        "true: frozen. false: a factor on the learning rate, as 1.0.",
    ),
    _row(
        "freeze_trainable_layers unfrozen_parameters trainable_parameters freeze_parameters freeze_extra_modules"
        " freeze_trainable_modules",
        "train.tower train.projector train.decoder",
        _FULL,
    ),
    # numbers, memory, machines
    _row(
        "bf16 torch_dtype dtype mixed_precision training.mixed_precision_param pure_bf16 bfloat16",
        "precision.compute",
        "true or bfloat16: bf16, the default on a GPU. Gradients and optimizer state are float32.",
    ),
    _row("fp16 float16 tf32", "precision.compute", "bf16 or fp32; float16 is not here."),
    _row(
        "fp8 fp8_recipe fp8_format enable_fp8 quantize.linear.float8",
        "precision.fp8",
        "delayed, tensorwise or blockwise.",
    ),
    _row(
        "gradient_checkpointing activation_checkpoint.mode recompute_granularity use_reentrant_gc"
        " disable_gradient_checkpointing vit_gradient_checkpointing",
        "recompute.mode",
        "true: full. selective: selective. none or false: none.",
    ),
    _same("recompute_num_layers", "recompute.layers", "The same number, with recompute.mode=full."),
    _row(
        "deepspeed fsdp fsdp_config zero_stage accelerate_config parallelism.data_parallel_shard_degree"
        " parallelism.data_parallel_replicate_degree use_distributed_optimizer fsdp_version",
        "",
        _LAYOUT,
    ),
    _same(
        "tensor_model_parallel_size parallelism.tensor_parallel_degree tensor_parallel_degree"
        " tensor_parallel_size tp_size tensor_parallel",
        "parallel.tensor",
    ),
    _same("sequence_parallel", "parallel.sequence"),
    _same(
        "pipeline_model_parallel_size parallelism.pipeline_parallel_degree pipeline_parallel_degree pp_size"
        " pipeline_parallel",
        "parallel.pipeline",
    ),
    _same(
        "context_parallel_size parallelism.context_parallel_degree sequence_parallel_size context_parallel_degree"
        " cp_size ulysses_size",
        "parallel.context",
    ),
    _row(
        "num_layers_per_virtual_pipeline_stage virtual_pipeline_model_parallel_size",
        "parallel.virtual",
        "The number of model chunks on each pipeline rank, not of layers in one.",
    ),
    _row(
        "attn_impl attn_implementation flash_attn flash_attention attention_backend sdp_attention xformers_attention",
        "attention",
        "auto chooses; flash is FlashAttention-4, cudnn is cuDNN.",
    ),
    _row(
        "compile.enable torch_compile use_liger_kernel enable_liger_kernel use_unsloth liger_plugin",
        "",
        "Not needed: fused kernels are always on where there is a GPU.",
    ),
    _row("nproc_per_node num_gpus n_gpu ddp_timeout num_processes", "", "Not in a stage: torchrun's, or Slurm's."),
    # saving, looking
    _same("save_steps save_interval checkpoint.interval", "checkpoint.every"),
    _row("saves_per_epoch save_strategy", "checkpoint.every", "A number of steps."),
    _row("save_total_limit checkpoint.keep_latest_k", "checkpoint.keep", "last N, the newest among them."),
    _row("checkpoint.async_mode async_save", "checkpoint.background", "async: true. disabled: false."),
    _row(
        "resume_from_checkpoint auto_resume_from_checkpoints load overwrite_output_dir checkpoint.load_step",
        "",
        "The same command again resumes from the newest checkpoint in output.",
    ),
    _row("save_only_model save_safetensors push_to_hub hub_model_id", "checkpoint.export",
         "A Hugging Face directory at the end; nothing is uploaded. From a step: tools/convert_checkpoint.py."),
    _same("logging_steps log_interval metrics.log_freq", "logging.every"),
    _row(
        "report_to use_wandb metrics.enable_wandb metrics.enable_tensorboard logging_dir plot_loss",
        "logging.tensorboard logging.wandb",
        "tensorboard: true, the default. wandb: offline or online. Curves are in OUTPUT/tensorboard.",
    ),
    _same("wandb_project", "logging.wandb_project"),
    _same("run_name wandb_name experiment_name", "stage", "A name of letters, digits, _ . -"),
    _same("eval_steps eval_interval validation.freq", "validation.every"),
    _row("eval_strategy evaluation_strategy evals_per_epoch do_eval", "validation.every", "A number of steps."),
    _row("eval_iters validation.steps per_device_eval_batch_size eval_batch_size", "validation.sequences",
         "Sequences of each held-out corpus, the same ones every time."),
    _same("data_seed training.seed", "seed"),
    _row("do_train sft_type rlhf_type task_type trainer_type", "", "Not needed: a stage trains."),
)  # fmt: skip


def _spelled(name: str) -> str:
    return name.strip().lstrip("-").replace("-", "_").lower()


_BY_NAME = {name: word for word in WORDS for name in word.names}


def find(key: str) -> Word | None:
    """The row of a key, with hyphens or capitals as well; by its whole dotted name, or by its last part."""
    key = _spelled(key)
    return _BY_NAME.get(key) or _BY_NAME.get(key.rpartition(".")[2])


def found_in(key: str, value: Any) -> Iterator[tuple[str, Word]]:
    """What the key is here; or, where nothing and it is a section, what the keys in it are. At most MOST_FOUND."""
    if (word := find(key)) is not None:
        yield key, word
    elif isinstance(value, Mapping):
        for name in list(value)[:MOST_FOUND]:
            if (word := find(inner := f"{key}.{name}")) is not None:
                yield inner, word


def answer(word: Word) -> str:
    """``Here: optimizer.peak. The same value.``"""
    return f"Here: {', '.join(word.here)}. {word.how}" if word.here else word.how
