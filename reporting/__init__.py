"""Tables and plots of reports. This package imports nothing else of `pvc`, so that all others may use it."""
