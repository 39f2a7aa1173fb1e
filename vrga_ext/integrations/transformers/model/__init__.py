"""Facts about a model, found without running it; no state."""
