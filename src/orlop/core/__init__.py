"""Interfaces and logic, one package per idea; implementations that register live in `orlop.plugins`."""
