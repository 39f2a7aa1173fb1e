"""VRGA in transformers models: the one floor that imports transformers."""
