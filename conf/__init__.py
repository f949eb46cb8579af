"""Configuration files that ship with nacrefs: complete, commented, equal to the defaults."""
