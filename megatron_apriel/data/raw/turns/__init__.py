"""Turns of a conversation: speakers, parts, reasoning, tool calls, results, in every published spelling. No torch."""
