"""Experiments that train, score and report."""
