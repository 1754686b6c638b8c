"""The one training loop, for CPU and GPU. This module imports nothing, so that a dry run needs no torch."""
