"""Networks of every kind to files that run elsewhere."""
