"""``python -m vrga_ext``."""

from vrga_ext.cli import app

if __name__ == "__main__":
    app(prog_name="python -m vrga_ext")
