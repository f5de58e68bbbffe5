"""The sections of the report: one file each, registered by `advprune.report.section.section`."""
