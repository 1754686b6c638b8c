"""Fuzzing: honest files of every kind, changed at random, must end in an error or in a right result.

For each kind of input there is a target (``targets/``). It makes small honest files when the run begins, changes a copy
of them for each case with mutators that know the format (checksums are made good again where damage alone is not the
question), and hands the copy to the code that users run. Three things are a failure:

- an exception that is none of the project's errors, or a crash of the process;
- more than 10 s of processor time or 512 MiB of memory for one case, or waiting for what does not come;
- silence: the input is accepted and the result is not what an independent reading of the same bytes gives.

Every case is a function of target, seed and number, so that any of them can be run again by itself::

    python -m tests.fuzz --minutes 120 --processes 2 --findings /tmp/findings
    python -m tests.fuzz --target images --case 1234 --seed 1

``test_fuzz.py`` runs the first few cases of each target with every run of the tests.
"""
