"""Services of the wire contract: each checks its input, calls the core and maps the answer."""
