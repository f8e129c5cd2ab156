"""Throughput of this machine, measured against pythae and a bare loop."""
