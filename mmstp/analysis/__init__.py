"""What belongs together: one trace of a model, walked once with channel ids."""
