"""The client library: pull, push, unpack, specs, containers and tasks."""
