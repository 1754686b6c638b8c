"""Weights in and out of a model: loading into shards, export, conversion, and a run's training state."""
