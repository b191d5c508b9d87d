"""Everything durable: scan, catalog, vector parts, index.  Knows neither torch nor Prefect."""
