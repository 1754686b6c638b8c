"""Linear layers that make the 8-bit copies of their weights anew for every product, and keep none in between.

A product in 8 bits reads a copy of the weights, and on Hopper the backward pass reads another one, transposed: 2 bytes
a parameter, which Transformer Engine keeps from the forward pass on. Of 48 layers that is 24 GiB, as much as the
activations of 24 of them at 8192 tokens. To make both again in the backward pass moves 4 bytes a parameter through
memory, a twentieth of the time in which such a layer would be computed again.

Transformer Engine has this way for weights that fully sharded data parallelism gathers anew: forward it makes the one
copy that it reads, saves none, and in the backward pass quantises the weight that is there. Nothing of that asks for
sharding, so the layers here take it. Delayed scaling may have a newer scale by then, which is as right as the first.

A layer that is recomputed as a whole gains nothing: its copies live as long as its own backward pass in any case.
"""

from __future__ import annotations

from functools import cache

from megatron_apriel.errors import ConfigError


@cache
def remaking(linear: type) -> type:
    """A class like ``linear``, one of Transformer Engine's; what runs in bf16 is the same in both.

    Raises:
        ConfigError: if this Transformer Engine has no such way.
    """
    if not hasattr(linear, "is_fsdp2"):
        raise ConfigError(
            f"precision.fp8_weights=remade cannot be had of {linear.__module__}.{linear.__name__}.",
            "This Transformer Engine does not make 8-bit weights anew for the backward pass; 2.20 does.",
            "Set precision.fp8_weights=kept, or install transformer-engine 2.20.",
        )

    class Remaking(linear):  # type: ignore[misc]
        @property
        def is_fsdp2(self) -> bool:
            """Whether weights are made anew for the backward pass; the name is Transformer Engine's."""
            return True

    Remaking.__name__ = Remaking.__qualname__ = f"Remaking{linear.__name__}"
    return Remaking
