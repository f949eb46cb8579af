"""The tree: one function per POSIX operation, each a step of a batch (`nacrefs.mds.transactions.step`)."""
