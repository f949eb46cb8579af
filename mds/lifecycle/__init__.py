"""Lifecycle rules: which files leave for an archive, when their space is released, when they are deleted."""
