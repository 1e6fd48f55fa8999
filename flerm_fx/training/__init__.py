"""A run is recorded or matched as it trains."""
