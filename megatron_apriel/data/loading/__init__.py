"""From corpora to the typed batch, in every run::

    packing    which documents fill which sequence
    mixture    which source gives sequence n of the run
    assemble   tokens, labels, positions and image slots of one sequence
    images     encoded bytes to normalised pixels, ahead of the step
    loader     rank and micro-batch by arithmetic; background thread; batches

Everything is random access by number, so the loader's whole state is one integer. This room knows nothing of the
model; the two meet in :mod:`megatron_apriel.batch`.
"""
