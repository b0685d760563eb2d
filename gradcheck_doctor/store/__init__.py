"""A run on disk: written while it trains, read by `doctor report` and `doctor fix --from`. Standard library only."""
