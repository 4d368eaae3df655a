"""Short names for people: of a setting, and of the jobs of a report."""

from collections.abc import Sequence

from lorap_exp.reporting.jobs import JobRecord
from lorap_exp.reporting.table import distinctions, leading_cells


def word(setting: str) -> str:
    """The telling word of a dotted setting: `calibration.name` is calibration."""
    return setting.removesuffix(".name").rsplit(".", 1)[-1]


def job_labels(jobs: Sequence[JobRecord]) -> dict[str, str]:
    """Job name -> what tells the job apart; the whole name where that is not enough."""
    results = [job.result for job in jobs]
    choices = [None if result is None else result.choice for result in results]
    heads = [leading_cells(j.config, choice) for j, choice in zip(jobs, choices, strict=True)]
    columns = {"model": [head["model"] for head in heads]}
    columns["method"] = [head["method"] for head in heads]
    columns["ratio"] = [f"{head['ratio']:g}" for head in heads]
    columns |= distinctions([job.config for job in jobs])
    columns["seed"] = [str(job.config.get("seed", "-")) for job in jobs]
    varying = {
        name: values for name, values in columns.items() if name == "method" or len(set(values)) > 1
    }
    labels = []
    for at in range(len(jobs)):
        row = {name: values[at] for name, values in varying.items() if values[at] != "-"}
        bare = [value for name, value in row.items() if name in ("model", "method")]
        named = [f"{word(n)} {v}" for n, v in row.items() if n not in ("model", "method")]
        labels.append(", ".join([*bare, *named]))
    return {
        job.name: label if labels.count(label) == 1 else job.name
        for job, label in zip(jobs, labels, strict=True)
    }
