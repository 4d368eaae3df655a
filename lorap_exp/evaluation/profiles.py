"""Perplexity profiles: the conventions under which papers report WikiText-2 and PTB.

A profile fixes chunk length, split and joiner; numbers of different profiles cannot be compared.
"""

from dataclasses import dataclass

from lorap_exp.data.source import DataSource, Text
from lorap_exp.errors import LorapError


@dataclass(frozen=True)
class Profile:
    """Chunk length in tokens, and (split, joiner) of each text."""

    name: str
    length: int
    texts: dict[str, tuple[str, str]]


WIKITEXT, C4 = ("test", "\n\n"), ("validation", "\n\n")
FIRST_TOKENS = {"c4": 262_144}
"""Of a text that is scored in part: the first tokens of C4's first validation shard."""
FIRST_ROWS = {"c4": 2_000}
"""Rows that are tokenised for them: some 900,000 tokens."""
PROFILES = {
    profile.name: profile
    for profile in (
        Profile("lorap", 128, {"wikitext2": WIKITEXT, "ptb": ("validation", "\n\n"), "c4": C4}),
        Profile("sparsegpt", 2048, {"wikitext2": WIKITEXT, "ptb": ("test", " "), "c4": C4}),
        Profile("svd_llm", 2048, {"wikitext2": WIKITEXT, "ptb": ("test", "\n\n"), "c4": C4}),
        Profile("asvd", 2048, {"wikitext2": WIKITEXT, "ptb": ("validation", "\n\n"), "c4": C4}),
        Profile("c4@2048", 2048, {"c4": C4}),
    )
}
"""LoRAP, LLM-Pruner and shortened-llm share `lorap`, where C4 is ours; SparseGPT and GPTQ share
`sparsegpt`."""


def read_text(name: str, profile: Profile, data: DataSource) -> Text:
    """The joined text of a profile from a data source.

    Raises:
        LorapError: the profile says nothing of this text.
    """
    if name not in profile.texts:
        raise LorapError(
            f"evaluation.perplexity.texts must be among {', '.join(profile.texts)} with "
            f"profile={profile.name}, got '{name}'"
        )
    split, joiner = profile.texts[name]
    label, rows = data.label(name), data.rows(name, split)[: FIRST_ROWS.get(name)]
    return Text(name, label, split, joiner.join(rows))
