"""Where the image is in a prompt, how it is cut into patches, and where the question ends.

From token ids, configuration and processor alone: no engine is imported here.
"""
