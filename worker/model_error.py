"""What is raised when a name leads to no model that can be used."""


class ModelError(Exception):
    """No usable model by that name; the words say what to do."""
