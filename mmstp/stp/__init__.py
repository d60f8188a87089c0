"""How it is trained: losses, the pool of architectures, the algorithm and its hooks."""
