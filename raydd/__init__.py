"""raydd: dataset distillation on Ray. See raydd/README.md for the map of this package."""

__version__ = "0.1.0"
