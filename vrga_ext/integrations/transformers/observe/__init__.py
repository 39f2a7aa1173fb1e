"""``capture``: what the forward calls of a model show."""
