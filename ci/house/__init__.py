"""The checks of `ci/shape`: each module yields findings, `recorded` compares them with the list."""
