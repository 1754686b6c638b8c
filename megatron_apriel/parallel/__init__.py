"""Where a rank stands, what it holds, and how ranks talk: rank arithmetic, process groups, Megatron Core on a CPU."""
