"""What a stage optimises, one file each: from hidden states, head and batch to a sum, its count and figures."""
