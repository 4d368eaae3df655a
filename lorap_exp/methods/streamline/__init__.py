"""LLM-Streamline (arXiv 2403.19135): redundant layers go, something lighter takes their place."""
