"""Scores of a model: perplexity by named profile, and zero-shot tasks through lm-eval."""
