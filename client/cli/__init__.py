"""The `zmqrt` command: one module per subcommand, each a thin caller of the client library.

Nothing here decides anything about the protocol.
"""
