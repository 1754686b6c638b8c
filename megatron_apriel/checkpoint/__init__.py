"""Weights in and out: the table of names, loading into shards, export, conversion, and a run's training state."""
