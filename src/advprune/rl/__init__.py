"""SAP on reinforcement-learning agents (extra `advprune[rl]`); no other module imports it."""
