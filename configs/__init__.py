"""Hydra yaml only; this file lets Hydra find the folder once installed."""
