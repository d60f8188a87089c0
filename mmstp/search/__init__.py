"""What may be chosen, and at what cost: stages, architectures, multiply-adds, budgets."""
