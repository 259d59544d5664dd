"""The version, where the lowest room can read it: the package itself offers names of all rooms."""

__version__ = "0.2.0"
