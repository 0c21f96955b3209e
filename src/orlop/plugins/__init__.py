"""Built-in implementations and services, each with its registration; `orlop.server.builtins` lists them."""
