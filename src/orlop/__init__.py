"""orlop: containerd's system in Python."""
