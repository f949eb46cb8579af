"""The metadata server: one MDT, which is one SQL database."""
