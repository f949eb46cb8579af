"""Vocabulary and wire of nacrefs; imports nothing else of ours."""
