"""`python -m advprune`."""

from advprune.cli.app import main

main()
