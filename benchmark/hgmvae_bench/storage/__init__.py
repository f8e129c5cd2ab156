"""Results folders: records, artifacts, leases, merging and remote copies."""
