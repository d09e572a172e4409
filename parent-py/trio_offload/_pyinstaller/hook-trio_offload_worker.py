"""What an app does not need, although it is imported somewhere: no job in an app is measured by coverage.py."""

excludedimports = ["coverage"]
