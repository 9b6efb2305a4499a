"""Secure aggregation: the coordinator learns the sum of the sites' updates, and no update."""
