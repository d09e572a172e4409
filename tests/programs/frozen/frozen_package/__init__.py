"""A package of the app that `test_frozen.py` builds."""
