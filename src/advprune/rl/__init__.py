"""SAP on agents that act (an extra, `advprune[rl]`): nothing else in the library imports it."""
