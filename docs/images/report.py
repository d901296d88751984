"""Take report_light.png, report_dark.png and report_phone.png of a report, in Chromium.

``python docs/images/report.py results/reports/quickstart.html``
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support import debian  # noqa: E402


class Shot(NamedTuple):
    """A window onto the page."""

    width: int
    height: int
    scale: int
    """Pixels of the picture for one of the page."""
    scheme: Literal["light", "dark"]
    place: str
    """What stands at the top: the end of a heading's id, or nothing for the top of the page."""


SHOTS = {
    "light": Shot(1280, 1000, 1, "light", ""),
    "dark": Shot(1280, 1000, 1, "dark", "--tables"),
    "phone": Shot(390, 844, 2, "light", "--figures"),
}


def main() -> None:
    """Take the pictures, beside this file."""
    parser = argparse.ArgumentParser(description="Take the pictures of docs/report.md, in Chromium.")
    parser.add_argument("report", type=Path, metavar="HTML", help="a report, as in results/reports")
    report = parser.parse_args().report
    if not report.is_file():
        parser.error(f"{report} is not there; write it: snakemake report")
    debian.install({"chromium": "chromium"})
    with sync_playwright() as playwright:
        # Without its sandbox, which root may not use; it opens nothing but this file.
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), chromium_sandbox=False)
        for name, shot in SHOTS.items():
            file = Path(__file__).with_name(f"report_{name}.png")
            # 256 colours are enough for text and lines, at a third of the bytes.
            take(browser, report, shot).quantize(256).save(file, optimize=True)
        browser.close()


def take(browser: Browser, report: Path, shot: Shot) -> Image.Image:
    """Open the report as a shot says, and return what is seen."""
    page = browser.new_page(
        viewport={"width": shot.width, "height": shot.height},
        device_scale_factor=shot.scale,
        color_scheme=shot.scheme,
    )
    page.goto(report.resolve().as_uri())
    if shot.place:
        page.locator(f"h3[id$='{shot.place}']").first.evaluate("heading => heading.scrollIntoView()")
    picture = page.screenshot()
    page.close()
    return Image.open(io.BytesIO(picture)).convert("RGB")


if __name__ == "__main__":
    main()
