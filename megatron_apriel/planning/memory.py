"""Expected memory of a rank, from shapes alone: for planning a layout, not for the last gigabyte. No torch.

What is counted, in bytes a parameter or a token; ``T``, ``D`` are tensor- and data-parallel ranks:

* weights: 2 in bf16, 4 in fp32, frozen ones too; decoder matrices, embedding and head are divided by T, norms, tower
  and projector are not. FP8 adds two 8-bit copies of the decoder's matrices (as they are and transposed) in layers that
  run in it; where they are remade for every product, of the one layer that is at work;
* gradients: 4 a trained parameter, the float32 buffer that gradients are added up and reduced in; with
  ``optimizer.gradients=24bit`` 3 for matrices of decoder layers, and room for those of one layer in float32;
* optimizer: two float32 moments, and the 16 bits that bf16 weights lack of their float32 masters, 10 a trained
  parameter, divided by D (Megatron's distributed optimizer; 8 in fp32, where the weights are their own master). Smaller
  forms are those of ``state_forms.py``. Of the states, ``optimizer.host`` puts a part into host memory, and on the GPU
  are then the pieces on their way;
* activations of a decoder layer kept for the backward pass, after Korthikanti et al. 2022 ("Reducing Activation
  Recomputation", section 4) for this layer: no dropout, fused attention that keeps no scores, gated MLP, grouped
  queries. In elements a token, with hidden size h, query width q, key and value width k, feed-forward width f::

      none        4h + (2q + 2k)/T + 3f/T     both norms' inputs and outputs; q, k, v, attention's output; gate, up,
                                              and their product
      selective   4h + (2q + 2k)/T            the MLP is computed again from its input, the second norm's output
      full        h                           the whole layer is

  h is divided by T under sequence parallelism. Under context parallelism a rank has its share of the tokens, and of
  each layer copies of the keys and values that its two blocks see: of one document those of all tokens and half a
  rank's more. A decoder that is frozen keeps no inputs of its matrices: 2h less and f/T less, with ``selective`` h
  less. In a layer that runs in FP8 those inputs take one byte for two, and with delayed scaling attention's output is
  kept in both forms. With ``recompute.inputs=host`` the h of ``full`` lies in host memory but for the inputs on their
  way, and but for those that a pipeline's later ranks received: Megatron's schedule holds these.
  Pipeline rank p of P keeps P - p micro-batches (one forward, one backward; more with interleaving, as in Megatron's
  schedule). With ``parallel.tensor_overlap`` the buffers of ``parallel/user_buffers.py``, once for all layers;
* what is at work, of two that never meet the larger. On the last stage the loss: 2 a token and vocabulary entry of this
  rank, of one part of the tokens at a time, since it computes logits and their gradient in parts of at most
  ``LOGITS_PER_PART`` elements; and 2h a token for the gradient of the hidden states. Or a layer that goes backward:
  2f/T elements, the gradients of gate and up, and what it has computed again. Where the last layers of a chunk keep
  everything, those have gone before one is computed again;
* images, on the first stage, for a sequence full of them, shared out over T: a trained tower keeps ``8h + 3f``
  elements a patch and layer (7h with ``selective``, h with ``full``), a frozen one holds one layer at a time; a trained
  projector keeps its three widths; the features of all shares are gathered on every rank. P micro-batches are kept, 2P
  with interleaving.

A rank saves its share of the weights, and of what is trained the masters, 4 bytes, and both moments, 8 or in bf16 4.
With ``checkpoint.background`` the host holds a copy of that. torch rounds each piece of it up to a power of two.

Not counted: CUDA's context, NCCL's buffers and the allocator's gaps, together commonly 3 to 6 GiB. What is counted is
compared with measured peaks of text on one GPU by ``tests/unit/planning/test_predictions_measured.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import inf, prod

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.formats.architecture import Architecture, DecoderArchitecture, TowerArchitecture
from megatron_apriel.parallel import user_buffers
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.parallel.logit_parts import LOGITS_PER_PART
from megatron_apriel.planning.state_forms import Kind, form_of

PIECE_NUMBERS = 8 << 20
"""Parameters whose states come from the host and go back together."""
PIECES_ON_THE_WAY = 3
"""One is brought, one updated, one taken back."""
INPUTS_ON_THE_WAY = 2
"""Of recomputed layers whose inputs lie on the host: forward, two that still leave; backward, one that comes and one
in use."""

_ONE_RANK = Layout()


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank on its GPU, and beside it on the host: of optimizer states, layers' inputs, and what is saved.

    Activations are those that are kept for the backward pass; ``working`` is what the loss takes, or a layer that goes
    backward, at the fullest moment.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    working: float
    images: float
    host: float = 0.0
    host_inputs: float = 0.0
    host_copy: float = 0.0

    @property
    def total(self) -> float:
        """Of the GPU."""
        return sum(getattr(self, field.name) for field in fields(self) if not field.name.startswith("host"))

    @property
    def on_host(self) -> float:
        """Of the host, in all."""
        return self.host + self.host_inputs + self.host_copy


@dataclass(frozen=True)
class _Held:
    """Parameters on one rank."""

    matrices_in_8_bits: float
    layer_matrices: float
    """Of one decoder layer."""
    layers: int
    vocabulary: float
    """Of the decoder's, those of embedding and head."""
    decoder: float
    tower: float
    projector: float


def rank_memory(
    config: StageConfig, architecture: Architecture, layout: Layout, pipeline_rank: int, available: float = inf
) -> RankMemory:
    """Expected bytes on each rank of a pipeline stage while it trains.

    Args:
        config: the stage.
        architecture: the model.
        layout: the layout; already checked against both.
        pipeline_rank: which pipeline stage.
        available: bytes of a GPU that are left to the program; what is more goes to the host by optimizer.host=auto.
    """
    whole, of_piece = _whole(config, architecture, layout, pipeline_rank)
    moved = _share(config, whole, of_piece, available) * whole.optimizer
    on_the_way = min(moved, _on_the_way(of_piece))
    return replace(whole, optimizer=whole.optimizer - moved + on_the_way, host=moved)


def host_share(
    config: StageConfig, architecture: Architecture, layout: Layout, pipeline_rank: int, available: float
) -> float:
    """Part of the optimizer's states that lies on the host; arguments as of :func:`rank_memory`."""
    return _share(config, *_whole(config, architecture, layout, pipeline_rank), available)


def state_bytes(config: StageConfig, architecture: Architecture, layout: Layout, pipeline_rank: int) -> float:
    """Bytes of the optimizer's states of a parameter, in the mean over those of a rank; 0 where none is trained."""
    trained = trained_parameters(config, architecture, layout, pipeline_rank) / layout.optimizer_shards
    return _whole(config, architecture, layout, pipeline_rank)[0].optimizer / trained if trained else 0.0


def trained_parameters(config: StageConfig, architecture: Architecture, layout: Layout, pipeline_rank: int) -> float:
    """Trained parameters on each rank of a pipeline stage."""
    return _trained(config, _held(config, architecture, layout, pipeline_rank))


def _trained(config: StageConfig, held: _Held) -> float:
    return sum(getattr(held, part) for part in config.trained_components)


def _share(config: StageConfig, whole: RankMemory, of_piece: float, available: float) -> float:
    if config.optimizer.host != "auto":
        return config.optimizer.host
    if whole.total <= available or not whole.optimizer:
        return 0.0
    # And a byte more, so that rounding leaves none over.
    return min((whole.total + _on_the_way(of_piece) - available + 1) / whole.optimizer, 1.0)


def _on_the_way(of_piece: float) -> float:
    return PIECES_ON_THE_WAY * PIECE_NUMBERS * of_piece


def _whole(
    config: StageConfig, architecture: Architecture, layout: Layout, pipeline_rank: int
) -> tuple[RankMemory, float]:
    """With all states on the GPU; and the bytes of a number in the pieces that would go to the host."""
    held = _held(config, architecture, layout, pipeline_rank)
    compute = config.precision.bytes_on(gpu=True)
    everything = held.decoder + held.tower + held.projector
    trained = _trained(config, held)
    vocabulary, layers = (held.vocabulary, held.layers) if config.train.decoder else (0.0, 0)
    kinds: tuple[Kind, ...] = ("matrix", "vocabulary")
    of_matrix, of_vocabulary = (form_of(config.optimizer, compute == 2, kind).bytes for kind in kinds)
    spared, scratch = 0.0, 0.0
    if config.optimizer.gradients == "24bit":
        spared, scratch = layers * held.layer_matrices, 4 * held.layer_matrices * bool(layers)
    is_first, is_last = pipeline_rank == 0, pipeline_rank == layout.pipeline - 1
    tokens = config.sequence_length / layout.context
    entries, hidden = architecture.decoder.vocab_size / layout.tensor, architecture.decoder.hidden_size
    loss = min(tokens * entries, LOGITS_PER_PART) + tokens * hidden if is_last else 0
    kept, at_work = _decoder_elements(config, architecture.decoder, layout, pipeline_rank)
    memory = RankMemory(
        weights=compute * everything + 2 * held.matrices_in_8_bits,
        gradients=4 * trained - spared + scratch,
        optimizer=(of_matrix * (trained - vocabulary) + of_vocabulary * vocabulary) / layout.optimizer_shards,
        activations=compute * kept + _buffers(config, layout, tokens * hidden),
        working=compute * max(loss, at_work),
        images=compute * _image_elements(config, architecture, layout) if is_first else 0,
        host_inputs=prod(inputs_on_host(config, architecture.decoder, layout, pipeline_rank)),
        host_copy=bytes_to_save(config, architecture, layout, pipeline_rank) if config.checkpoint.background else 0.0,
    )
    return memory, of_vocabulary if vocabulary else of_matrix


def bytes_to_save(
    config: StageConfig, architecture: Architecture, layout: Layout = _ONE_RANK, pipeline_rank: int = 0
) -> float:
    """Bytes of weights, masters and moments in a checkpoint, of what a pipeline stage's ranks hold; of all on one rank.

    Divided over the ranks that hold the same, of which each saves its part. ``optimizer.moments`` is chosen.
    """
    held = _held(config, architecture, layout, pipeline_rank)
    trained, section = _trained(config, held), config.optimizer
    vocabulary = held.vocabulary if config.train.decoder else 0.0
    of_matrix, of_vocabulary = {"float32": (8, 8), "bfloat16": (4, 4), "int8": (8, 4)}[str(section.moments)]
    weights = config.precision.bytes_on(gpu=True) * (held.decoder + held.tower + held.projector)
    states = 4 * trained + of_matrix * (trained - vocabulary) + of_vocabulary * vocabulary
    return (weights + states) / layout.optimizer_shards


def _buffers(config: StageConfig, layout: Layout, elements: float) -> float:
    if not config.parallel.tensor_overlap:
        return 0.0
    return user_buffers.bytes_of(elements, layout.tensor, in_8_bits=config.precision.fp8 != "none")


def _held(config: StageConfig, architecture: Architecture, layout: Layout, pipeline_rank: int) -> _Held:
    decoder, tensor = architecture.decoder, layout.tensor
    number = decoder.num_layers
    layers = [layer for chunk in range(layout.virtual) for layer in layout.layers_of(number, pipeline_rank, chunk)]
    norms = 2 * decoder.hidden_size
    matrices = (decoder.layer_parameters - norms) / tensor
    in_8_bits = sum(config.precision.in_8_bits(layer, number) for layer in layers)
    on_rank = len(layers) * (matrices + norms)
    is_first, is_last = pipeline_rank == 0, pipeline_rank == layout.pipeline - 1
    vocabulary = (is_first + is_last) * decoder.embedding_parameters / tensor
    on_rank += vocabulary + is_last * decoder.hidden_size
    tower = architecture.tower.parameters if architecture.tower and is_first else 0
    projector = architecture.projector.parameters if architecture.projector and is_first else 0
    if config.precision.fp8_weights == "remade":
        in_8_bits = min(in_8_bits, 1)
    return _Held(in_8_bits * matrices, matrices, len(layers), vocabulary, on_rank, tower, projector)


def _recomputed(config: StageConfig, layout: Layout, pipeline_rank: int, num_layers: int) -> int:
    """Decoder layers of a pipeline rank of which something is recomputed."""
    if config.recompute.mode == "none":
        return 0
    counts = [len(layout.layers_of(num_layers, pipeline_rank, chunk)) for chunk in range(layout.virtual)]
    return sum(min(count, config.recompute.layers or count) for count in counts)


def micro_batches_in_flight(layout: Layout, pipeline_rank: int, micro_batches: int) -> float:
    """Micro-batches whose activations a pipeline rank keeps at the fullest moment, in units of all its layers."""
    if layout.virtual == 1:
        return min(layout.pipeline - pipeline_rank, micro_batches)
    chunks = 2 * (layout.pipeline - pipeline_rank - 1) + (layout.virtual - 1) * layout.pipeline + 1
    return min(chunks, micro_batches * layout.virtual) / layout.virtual


def sequences_of_images_in_flight(layout: Layout, micro_batches: int) -> int:
    """Micro-batches whose images the first pipeline rank keeps at the fullest moment.

    They are those of its first chunk: of an interleaved schedule two rounds, since the second begins before the first
    has gone back through all chunks.
    """
    return min(layout.pipeline * (1 if layout.virtual == 1 else 2), micro_batches)


def layer_elements(
    decoder: DecoderArchitecture, mode: str, tensor: int, sequence: bool, trained: bool, context: int = 1
) -> float:
    """Elements a token of a rank that one decoder layer keeps for the backward pass, by the module's table."""
    hidden = decoder.hidden_size / (tensor if sequence else 1)
    copies = context + 0.5 if context > 1 else 1  # of the keys and values of so many tokens as a rank has
    attention = 2 * (decoder.num_heads + copies * decoder.num_kv_heads) * decoder.head_dim / tensor
    feed_forward = decoder.ffn_hidden_size / tensor
    if mode == "full":
        return hidden
    if mode == "selective":
        return (4 if trained else 3) * hidden + attention
    return (4 if trained else 2) * hidden + attention + (3 if trained else 2) * feed_forward


def _spared_by_8_bits(decoder: DecoderArchitecture, mode: str, layout: Layout, recipe: str) -> float:
    """Elements of two bytes a token that a trained layer spares where the inputs of its matrices are kept in 8 bits."""
    hidden = decoder.hidden_size / (layout.tensor if layout.sequence else 1)
    # With delayed scaling in both forms; otherwise in the one that attention itself keeps.
    attention = decoder.num_heads * decoder.head_dim / layout.tensor if recipe == "delayed" else 0.0
    halves = {
        "none": 2 * hidden + decoder.ffn_hidden_size / layout.tensor - attention,
        "selective": hidden - attention,
        "full": 0.0,
    }
    return halves[mode] / 2


def _decoder_elements(
    config: StageConfig, decoder: DecoderArchitecture, layout: Layout, pipeline_rank: int
) -> tuple[float, float]:
    """Elements that a rank keeps of its layers for the backward pass, and those of a layer that goes backward."""
    chunks = [layout.layers_of(decoder.num_layers, pipeline_rank, chunk) for chunk in range(layout.virtual)]
    layers = [layer for chunk in chunks for layer in chunk]
    trained, mode = config.train.decoder > 0, config.recompute.mode
    in_8_bits = sum(config.precision.in_8_bits(layer, decoder.num_layers) for layer in layers) / max(len(layers), 1)

    def kept(how: str) -> float:
        elements = layer_elements(decoder, how, layout.tensor, layout.sequence, trained, layout.context)
        spared = in_8_bits * _spared_by_8_bits(decoder, how, layout, config.precision.fp8) if trained else 0
        return elements - spared

    recomputed = _recomputed(config, layout, pipeline_rank, decoder.num_layers)
    micro_batches = layout.micro_batches(config.sequences_per_step)
    in_flight = micro_batches_in_flight(layout, pipeline_rank, micro_batches)
    inputs = recomputed * in_flight
    if config.recompute.inputs == "host":
        received = in_flight * (layout.virtual - (pipeline_rank == 0))
        inputs = min(inputs, INPUTS_ON_THE_WAY + received)
    whole = (len(layers) - recomputed) * in_flight
    again = 0.0
    if mode == "selective":
        again = kept("none") - kept(mode)
    elif mode == "full" and any(len(chunk) <= (config.recompute.layers or len(chunk)) for chunk in chunks):
        again = kept("none")
    gradients = 2 * decoder.ffn_hidden_size / layout.tensor
    tokens = config.sequence_length / layout.context
    return tokens * (inputs * kept(mode) + whole * kept("none")), tokens * (gradients + again)


def inputs_on_host(
    config: StageConfig, decoder: DecoderArchitecture, layout: Layout, pipeline_rank: int
) -> tuple[int, int]:
    """How many inputs of recomputed layers a rank keeps in host memory at the fullest moment, and bytes of one.

    The type is that of ``precision.compute``, on a GPU where it is ``auto``.
    """
    if config.recompute.inputs == "gpu":
        return 0, 0
    chunks = [layout.layers_of(decoder.num_layers, pipeline_rank, chunk) for chunk in range(layout.virtual)]
    of_a_chunk = max(min(len(layers), config.recompute.layers or len(layers)) for layers in chunks)
    micro_batches = layout.micro_batches(config.sequences_per_step)
    passes = round(micro_batches_in_flight(layout, pipeline_rank, micro_batches) * layout.virtual)
    tokens = config.sequence_length // layout.context // (layout.tensor if layout.sequence else 1)
    return of_a_chunk * passes, config.precision.bytes_on(gpu=True) * tokens * decoder.hidden_size


def _image_elements(config: StageConfig, architecture: Architecture, layout: Layout) -> float:
    tower, projector = architecture.tower, architecture.projector
    if tower is None or projector is None:
        return 0
    patches = config.sequence_length / (layout.tensor * layout.context)
    in_flight = sequences_of_images_in_flight(layout, layout.micro_batches(config.sequences_per_step))
    elements = patches * tower.patch_values + config.sequence_length * projector.output_size
    layers = tower.num_layers * in_flight if config.train.tower else 1
    elements += patches * layers * _tower_layer_elements(tower, config)
    if config.train.projector or config.train.tower:
        elements += patches * in_flight * (projector.input_size + 2 * projector.output_size)
    return elements


def _tower_layer_elements(tower: TowerArchitecture, config: StageConfig) -> float:
    hidden = tower.hidden_size
    if config.train.tower and config.recompute.mode == "full":
        return hidden
    if config.train.tower and config.recompute.mode == "selective":
        return 7 * hidden
    return 8 * hidden + 3 * tower.ffn_hidden_size
