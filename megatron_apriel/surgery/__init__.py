"""Checkpoint edits on bytes: depth upscaling and averaging. Imports neither torch nor Megatron Core."""
