"""Pre-training: the loop, the step, and what they are built from."""
