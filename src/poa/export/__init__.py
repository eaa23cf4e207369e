"""Ways to hand a size out."""
