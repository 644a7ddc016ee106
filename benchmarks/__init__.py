"""Scripts behind the figures of the README."""
