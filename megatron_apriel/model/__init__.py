"""The model: a Pixtral tower, a projector and a Mistral decoder on Megatron Core's parallel layers.

Knows batches and layouts; does not know where data or weights come from.
"""
