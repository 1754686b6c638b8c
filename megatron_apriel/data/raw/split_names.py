"""Words for the splits of a data set, in names of files and in the records themselves."""

from __future__ import annotations

_WORDS = {
    "train": "train training trainset traindata trainval",
    "validation": "validation valid val dev minival validationset validset valset devset valdata devdata",
    "test": "test testing eval evaluation testmini minitest testdev holdout heldout testset evalset testdata",
}
SPLIT_OF_WORD = {word: split for split, words in _WORDS.items() for word in words.split()}
"""The split that a word names."""
HELD_OUT = ("validation", "test")
"""Splits that are not trained on unless asked for."""
