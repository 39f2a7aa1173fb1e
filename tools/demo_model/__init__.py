"""The training of the demo model that ``vrga_ext.demo`` ships: ``python -m tools.demo_model``."""
