"""Warmup jobs: files are brought to the OSTs before somebody needs them."""
