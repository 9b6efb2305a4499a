"""The site: only here do patient data exist."""
