"""Side by side with containerd: `make bench`."""
