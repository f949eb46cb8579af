"""File data: dirty extents, read-ahead, and how bytes get to OSTs and from them."""
