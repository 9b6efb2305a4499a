"""Pages of the trust study: what attacks, privacy and secure aggregation cost."""
