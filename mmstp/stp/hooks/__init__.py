"""Hooks of the runner: when the pool shrinks, how subnets are evaluated, how epochs are seeded."""
