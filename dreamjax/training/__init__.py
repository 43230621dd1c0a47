"""What every training run needs, whatever it trains: it takes arrays and callables only."""
