"""Faults made on purpose: what shows that the fleet outlives them. Nothing of this runs unless somebody asks for it."""
