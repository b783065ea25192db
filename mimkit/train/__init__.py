"""Training: one step, the loop around it, checkpoints, many processes."""
