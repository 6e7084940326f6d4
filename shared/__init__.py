"""What the API, the workers and the operator's command line share."""

__version__ = "0.1.0"  # as pyproject.toml states it
