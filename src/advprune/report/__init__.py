"""The report: everything people see, computed from records. Needs no torch."""
