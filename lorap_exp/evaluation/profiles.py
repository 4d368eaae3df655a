"""Perplexity profiles: the conventions under which papers report WikiText-2 and PTB.

A profile fixes chunk length, split and joiner; numbers of different profiles cannot be compared.
"""

from dataclasses import dataclass

from lorap_exp.data.source import DataSource, Text


@dataclass(frozen=True)
class Profile:
    """Chunk length in tokens, and (split, joiner) of each text."""

    name: str
    length: int
    texts: dict[str, tuple[str, str]]


WIKITEXT = ("test", "\n\n")
PROFILES = {
    profile.name: profile
    for profile in (
        Profile("lorap", 128, {"wikitext2": WIKITEXT, "ptb": ("validation", "\n\n")}),
        Profile("sparsegpt", 2048, {"wikitext2": WIKITEXT, "ptb": ("test", " ")}),
        Profile("svd_llm", 2048, {"wikitext2": WIKITEXT, "ptb": ("test", "\n\n")}),
        Profile("asvd", 2048, {"wikitext2": WIKITEXT, "ptb": ("validation", "\n\n")}),
    )
}
"""LoRAP, LLM-Pruner and shortened-llm share `lorap`; SparseGPT and GPTQ share `sparsegpt`."""


def read_text(name: str, profile: Profile, data: DataSource) -> Text:
    """The joined text of a profile from a data source."""
    split, joiner = profile.texts[name]
    return Text(name, data.label(name), split, joiner.join(data.rows(name, split)))
