"""How the head's logits are cut: the loss computes them for a part of a sequence's tokens at a time.

With 131072 entries in the vocabulary, the logits of a sequence are its largest tensor by far. The loss
(``model/linear_cross_entropy.py``) works on parts of them, and the memory estimate counts one. Pure arithmetic.
"""

from __future__ import annotations

LOGITS_PER_PART = 2**29
"""Largest number of logits at a time: 1 GiB in bfloat16, 4096 tokens of 131072 entries. Each part reads and writes the
whole float32 gradient of the weight (1.3 ms for 131072 x 5120 on an H200, where the part's products take 24 ms), so
parts should be large; beyond this, time no longer falls noticeably and memory grows."""

TOKEN_MULTIPLE = 16
"""Parts have a multiple of this many tokens: whole tiles for the tensor cores, and aligned rows."""


def tokens_per_part(tokens: int, entries: int) -> int:
    """Tokens of a part: as few parts as the limit allows, of equal size but for the last.

    Args:
        tokens: of the sequence on this rank.
        entries: of the vocabulary on this rank.
    """
    parts = -(-tokens * entries // LOGITS_PER_PART)
    return -(-tokens // (parts * TOKEN_MULTIPLE)) * TOKEN_MULTIPLE
