"""OCI image and runtime specifications as typed structs, digests and media types."""
