"""Training a few parameters of a model, resumable at any step."""
