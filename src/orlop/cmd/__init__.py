"""Entry points: read flags, call one function."""
