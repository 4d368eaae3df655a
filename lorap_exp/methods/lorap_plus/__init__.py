"""LoRAP+: `step` is the method, `curves` and `trials` measure, `rewriting` carries it out."""
