"""Losses and targets: pure functions of features and prototypes, float32 inside."""
