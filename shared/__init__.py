"""What sites and the coordinator must agree on. Knows neither client nor server."""
