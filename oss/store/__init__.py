"""Archives as movers see them: one protocol, one module per kind of storage."""
