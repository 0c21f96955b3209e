"""The supervisor: one process per namespace that holds the tasks of its containers."""
