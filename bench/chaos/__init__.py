"""Faults made on purpose, to show that a fleet outlives them. A tool for developers: the wheel has none of it."""
