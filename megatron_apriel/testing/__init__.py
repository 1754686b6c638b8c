"""Importable helpers for tests: processes that talk over gloo, small checkpoints and tokenizers, capability marks."""
