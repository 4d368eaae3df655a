"""A data folder with three texts where C4's validation split is not at hand.

`python -m benchmarks.held_out FOLDER OUTPUT` links a folder of real data to OUTPUT and divides its
C4 sample by documents: the first 400 to calibrate on (`calibration/c4_first.txt`), the others as
`c4/validation.txt`. No document is in both, so they measure the domain of the calibration without
its text. It is no public split: numbers compare with each other only.
"""

import argparse
import hashlib
import json
from pathlib import Path

DOCUMENTS = 400


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    asked = parser.parse_args()
    listed = json.loads((asked.folder / "MANIFEST.json").read_text("utf-8"))
    for name in listed:
        link = asked.output / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((asked.folder / name).resolve())
    sample = (asked.folder / "calibration" / "c4_sample.txt").read_text("utf-8")
    lines = sample.removesuffix("\n").split("\n")
    parts = {"calibration/c4_first.txt": lines[:DOCUMENTS], "c4/validation.txt": lines[DOCUMENTS:]}
    for name, documents in parts.items():
        raw = ("\n".join(documents) + "\n").encode()
        (asked.output / name).parent.mkdir(parents=True, exist_ok=True)
        (asked.output / name).write_bytes(raw)
        listed[name] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    (asked.output / "MANIFEST.json").write_text(json.dumps(listed, indent=1), "utf-8")
    print(
        f"{asked.output}: {DOCUMENTS} documents to calibrate on, {len(lines) - DOCUMENTS} to score"
    )


if __name__ == "__main__":
    main()
