"""Draw docs/images/scenes.png: pictures of the built scenes with their captions, four times as large.

python docs/images/scenes.py        # after `python -m experiments.scenes`, with --level hard as well
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from experiments.fetch.shards import read_shards

ROOT = Path(__file__).resolve().parents[2]
ROWS = (
    ("scenes", "data/scenes/train/00000.tar"),
    ("scenes_hard", "data/scenes_hard/train/00000.tar"),
    ("other grounds", "data/scenes/evals/scenes_other_grounds/test/0.tar"),
    ("sketched", "data/scenes/evals/scenes_sketched/test/0.tar"),
    ("turned", "data/scenes/evals/scenes_turned/test/0.tar"),
    ("unseen drawings", "data/scenes_hard/evals/scenes_hard_unseen_drawings/test/0.tar"),
)
COLUMNS, SIDE, WIDTH, HEIGHT, MARGIN = 5, 128, 176, 172, 112


def main() -> None:
    """Draw it."""
    sheet = Image.new("RGB", (MARGIN + COLUMNS * WIDTH, len(ROWS) * HEIGHT), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for row, (title, shard) in enumerate(ROWS):
        path = ROOT / shard
        draw.text((4, row * HEIGHT + SIDE // 2), title, "black", font)
        for column, sample in enumerate(read_shards([path])[:COLUMNS]):
            left, top = MARGIN + column * WIDTH, row * HEIGHT + 4
            picture = Image.open(io.BytesIO(sample["png"])).convert("RGB")
            sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.NEAREST), (left, top))
            words = sample["txt"].decode().split()
            lines = (" ".join(words[:5]), " ".join(words[5:]))
            draw.multiline_text((left, top + SIDE + 4), "\n".join(lines), "black", font)
    sheet.quantize(256, dither=Image.Dither.NONE).save(Path(__file__).with_suffix(".png"), optimize=True)


if __name__ == "__main__":
    main()
