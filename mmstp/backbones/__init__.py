"""Backbones that mmpretrain does not have."""
