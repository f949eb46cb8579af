"""The lifecycle tier: a coordinator, its queue in SQL, and what it does with inodes (docs/tiering.md)."""
