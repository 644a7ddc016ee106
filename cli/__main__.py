"""`python -m pvc.cli`, as `pvc`."""

from pvc.cli import app

app()
