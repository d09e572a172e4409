"""Exclude packages that the worker imports only for programs that import them too.

An app that imports one has it all the same: PyInstaller ignores the imports of these modules only.

* coverage measures jobs for tests, and never in an app.
* A worker uses OpenTelemetry if its app has called ``instrument``, whose modules import all of it
  that the worker needs.
"""

excludedimports = ["coverage", "opentelemetry"]
