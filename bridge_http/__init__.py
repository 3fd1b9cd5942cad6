"""The HTTP bridge: answers HTTP by being an ordinary zmqrt client.

This is the only package that knows HTTP; it never imports broker or worker.
"""
