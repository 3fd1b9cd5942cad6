"""The broker: takes requests from clients and hands each one to a worker that can serve it.

It never looks inside a body, runs no model, and meets clients and workers on the wire only.
"""
