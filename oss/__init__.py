"""The object storage server: striped file bytes in OSTs, each a directory on NVMe."""
