"""Sizes, slice plans and sub-networks."""
