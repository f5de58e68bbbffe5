"""The `advprune` command: one file a subcommand. Nothing else in the library imports it."""
