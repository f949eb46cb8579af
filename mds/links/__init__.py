"""Links: directories whose files are the objects of a bucket (docs/adr/0014-links.md)."""
