"""System calls and kernel probes; nothing here knows a word of containers."""
