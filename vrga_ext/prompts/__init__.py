"""Where the image is in a prompt, how it is cut into patches, and where the question ends.

The modules read token ids, configuration and processor alone, and import no engine.
"""
