"""The `advprune` command: one file per subcommand. Nothing else in the library imports it."""
