"""Supervised tasks: classification, segmentation and detection."""
