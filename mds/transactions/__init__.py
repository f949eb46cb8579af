"""Merged transactions: requests that arrive together are one commit (docs/adr/0007-merged-transactions.md)."""
