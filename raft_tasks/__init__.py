"""The stages' tasks and the algorithms behind them; `flows` puts them in order."""
