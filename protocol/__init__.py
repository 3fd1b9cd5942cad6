"""ZRT/1 itself: messages, limits, errors, timing, settings, and the one place that makes sockets.

Every role imports this package and it imports none of them; it knows nothing of HTTP.
"""
