"""The manager of mounts, and the handlers of what mount(2) does not know."""
