"""Generated protobuf code: see the .proto files under proto/. Never edited by hand."""
