"""lorap_exp: low-rank and structured compression of decoder-only language models.

Importing it registers the compressed architectures with transformers' Auto classes.
"""

from lorap_exp.models.checkpoint import load, register

register()

__all__ = ["load"]
