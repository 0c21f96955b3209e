"""The daemon: configuration, the plug-in graph, doors and interceptors."""
