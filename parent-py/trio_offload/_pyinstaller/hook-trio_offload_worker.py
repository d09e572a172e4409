"""Exclude coverage.py, which the worker imports only to measure jobs, and never in an app."""

excludedimports = ["coverage"]
