"""The client library: the same verbs for plain threads and for asyncio, over ZRT/1.

It needs no HTTP stack, no torch and no compiler, and it never imports broker or worker.
"""
