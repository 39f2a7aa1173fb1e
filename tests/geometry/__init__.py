"""Where image tokens lie in pictures."""
