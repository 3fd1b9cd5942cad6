"""A worker node: an agent that speaks ZRT/1 and one engine process per device behind it.

It knows devices, batches and text; it does not know which clients exist or how they were routed.
"""
