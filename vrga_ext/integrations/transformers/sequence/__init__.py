"""What lives on a KV cache: the prompt and what follows from it for later calls."""
