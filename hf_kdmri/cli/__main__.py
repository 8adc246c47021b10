"""`python -m hf_kdmri.cli`."""

from hf_kdmri.cli import app

app()
