"""A run, as it trains: recorded, or matched."""
