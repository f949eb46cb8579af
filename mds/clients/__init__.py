"""The clients as the MDS sees them: sessions, leases and their recall, locks, turns to append."""
