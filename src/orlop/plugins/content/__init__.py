"""Content stores that are built in."""
