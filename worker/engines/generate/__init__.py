"""The `generate` engine: continuous batching over slots of one flat pool of keys and values.

`kv_cache` hands out extents of the pool and remembers finished ones for prefixes, `schedule` decides what each step
computes, `engine` is the loop around both; none of them imports torch. A `Runner` computes a step: `torch_runner` with
a model on a device, `mock` with arithmetic.
"""
