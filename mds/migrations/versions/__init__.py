"""One file per schema, each with the way from the one before; `nacrefs.mds.database` runs them."""
