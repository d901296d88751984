"""List the licences of the drawings, checked against the files inside the wheels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from zipfile import ZipFile

from experiments.icons.sources import SourceError


@dataclass(frozen=True)
class Licence:
    """A source: its holder, its licence, and the file in its wheel that says so.

    `evidence` is a passage of `member`; `whole` tells whether that file is the licence, to be quoted in full.
    """

    source: str
    holder: str
    spdx: str
    project: str
    member: str
    evidence: str
    whole: bool = True


_ICONS = "material/templates/.icons"
_QTAWESOME = "qtawesome-1.4.2.dist-info/METADATA"

LICENCES = (
    Licence(
        "Material Design Icons", "Pictogrammers", "Apache-2.0",
        "mkdocs-material", f"{_ICONS}/material/LICENSE", "# Icons: Apache 2.0",
    ),
    Licence(
        "Font Awesome Free", "Fonticons, Inc.", "CC-BY-4.0",
        "mkdocs-material", f"{_ICONS}/fontawesome/LICENSE.txt", "# Icons: CC BY 4.0 License",
    ),
    Licence(
        "Octicons", "GitHub Inc.", "MIT",
        "mkdocs-material", f"{_ICONS}/octicons/LICENSE", "MIT License\n\nCopyright (c) 2025 GitHub Inc.",
    ),
    Licence(
        "Tabler Icons", "Pawe\u0142 Kuna", "MIT",
        "pytablericons", "pytablericons-1.0.1.dist-info/LICENSE", "Copyright (c) 2020 Pawe\u0142 Kuna",
    ),
    Licence(
        "Remix Icon", "Remix Design", "Apache-2.0",
        "qtawesome", _QTAWESOME, "The Remix Icon font is licensed under the [Apache License Version 2.0]", whole=False,
    ),
    Licence(
        "Phosphor", "Phosphor Icons", "MIT",
        "qtawesome", _QTAWESOME, "The Phosphor font is licensed under the [MIT License]", whole=False,
    ),
    Licence(
        "Codicons", "Microsoft", "CC-BY-4.0",
        "qtawesome", _QTAWESOME,
        "Microsoft's Codicons are licensed under a [Creative Commons Attribution 4.0 International Public License]",
        whole=False,
    ),
    Licence(
        "Elusive Icons", "Aristeides Stathopoulos, Team Redux", "OFL-1.1",
        "qtawesome", _QTAWESOME,
        "[Elusive Icons](http://elusiveicons.com/license/) fonts are licensed under the [SIL Open Font License]",
        whole=False,
    ),
)  # fmt: skip

_HEAD = """\
# Licences of the pictures

The pictures are put together from drawings of the sources below: reduced to a part of {side} x {side} pixels, coloured,
in part turned or bent. `pictures.tsv` says which drawings are in each picture. A drawing stays under its source's
licence.

| source | holder | licence | wheel |
| --- | --- | --- | --- |
"""


def licence_notes(wheels: Mapping[str, ZipFile], side_px: int) -> str:
    """Return ``LICENSES.md``: a table of the sources, and what the wheels themselves say.

    Args:
        wheels: Opened wheels by project.
        side_px: Of the pictures that the drawings are part of.

    Raises:
        SourceError: If a wheel does not say what the table claims.
    """
    rows, texts = [], []
    for licence in LICENCES:
        text = wheels[licence.project].read(licence.member).decode().replace("\r\n", "\n")
        if licence.evidence not in text:
            raise SourceError(
                f"{licence.source}: {licence.member} of {licence.project} no longer says {licence.evidence!r}. "
                f"Read it, then correct the entry in {__name__}."
            )
        rows.append(f"| {' | '.join((licence.source, licence.holder, licence.spdx, licence.project))} |\n")
        said = text if licence.whole else next(line for line in text.splitlines() if licence.evidence in line)
        quoted = "\n".join(f"    {line}".rstrip() for line in said.strip().splitlines())
        texts.append(f"\n## {licence.source}\n\nFrom `{licence.member}` of {licence.project}:\n\n{quoted}\n")
    return _HEAD.format(side=side_px) + "".join(rows) + "".join(texts)
