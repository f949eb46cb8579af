"""Hostile bytes: at decoders, and at servers that serve others meanwhile. `make fuzz SECONDS=600` goes on longer."""
