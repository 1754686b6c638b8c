"""A harmless thing for a pickle to call: who reads a file so that it runs code is seen by it, and that is all."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence

from megatron_apriel.errors import AprielError

from .case import Wrong

_calls: list[str] = []


def touched(where: str = "") -> None:
    """Remember that a file had this called."""
    _calls.append(where)


class Caller:
    """Pickled, it is a call of :func:`touched`."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return touched, ("pickle",)


def calling_pickle() -> bytes:
    """A pickle that calls :func:`touched` when it is read without restriction."""
    return pickle.dumps(Caller())


def check_untouched() -> None:
    """Raise Wrong if a file had anything called."""
    if _calls:
        _calls.clear()
        raise Wrong("a file ran code")


def try_all(uses: Sequence[Callable[[], None]]) -> None:
    """Use an input in every way there is.

    Raises the first refusal if every use refuses it, and Wrong if one had anything called.
    """
    refusals = []
    for use in uses:
        try:
            use()
        except AprielError as refusal:
            refusals.append(refusal)
        finally:
            check_untouched()
    if len(refusals) == len(uses):
        raise refusals[0]


def forget() -> None:
    """Begin anew: the mutators themselves may have read a file."""
    _calls.clear()
