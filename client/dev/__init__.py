"""A whole cluster on this machine (`nacre dev`)."""
