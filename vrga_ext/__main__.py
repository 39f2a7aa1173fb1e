"""``python -m vrga_ext``."""

from vrga_ext.cli import app

app(prog_name="python -m vrga_ext")
