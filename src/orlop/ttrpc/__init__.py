"""ttrpc: protobuf requests over a stream socket, client and server. Knows nothing of containers."""
