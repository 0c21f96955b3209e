"""gRPC over HTTP/2, the server's side, on asyncio alone: a library of its own that knows nothing of containers.

    frames       HTTP/2 frames as bytes, and faults
    huffman      HPACK's Huffman code
    hpack        header compression
    limits       what a peer may want at most
    sending      what goes out, as windows and the socket allow
    reading      bytes into frames, in turns
    connection   the protocol's state, without gRPC
    rpc          gRPC's headers, statuses and message prefixes
    inbound      what a client streams, waiting for its handler
    serving      calls on a connection
    server       listening, and ending well

See docs/doors.md for what it does and does not do, and docs/decisions for why it is our own.
"""
