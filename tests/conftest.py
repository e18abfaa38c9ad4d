"""Shared by all tests. Its presence puts the repository's root on the path, so that `tests.models` imports."""
