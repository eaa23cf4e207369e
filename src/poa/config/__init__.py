"""Settings: what can be set, its limits, and recipes, files and flags over one another."""
