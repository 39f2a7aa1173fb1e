"""One forward call: nothing here outlives it."""
