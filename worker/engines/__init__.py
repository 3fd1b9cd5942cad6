"""The engines: what turns token ids into tokens on one device, each behind a protocol of `base.py`."""
