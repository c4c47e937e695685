"""Draw the example pictures of the made world, with prompts and right answers.

    python -m examples.make_world examples/world

All are scenes that the shipped model was never trained on.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from training.world.captions import CAPTION_START
from training.world.exam import Task, caption_tasks, fact_tasks, place_fact_tasks, topic_tasks
from training.world.pictures import draw

SEED = 12
SIDE = 384
_QUALITY = 88


# (topic, number among its tasks): ones that the shipped model answers right; how often it does
# is in the model card.
_CHOSEN = (("which", 2), ("count", 1), ("what where", 4))
_CHOSEN_FACTS = (6, 12, 27, 15)
_CHOSEN_PLACE = 2


def tasks() -> list[Task]:
    """Twelve tasks, of different pictures and kinds."""
    split = "held_out"
    facts = fact_tasks(split, 1, SEED)
    chosen = caption_tasks(split, 4, SEED)
    chosen += [facts[number] for number in _CHOSEN_FACTS]
    chosen.append(place_fact_tasks(split, 1, SEED)[_CHOSEN_PLACE])
    chosen += [topic_tasks(topic, split, i + 1, SEED)[i] for topic, i in _CHOSEN]
    return chosen


def main(folder: Path) -> None:
    """Write twelve pictures and prompts.json into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, task in enumerate(tasks(), start=1):
        name = f"{number:02d}.jpg"
        picture = draw(task.scene, np.random.default_rng(task.picture_seed), SIDE)
        Image.fromarray(picture).save(folder / name, quality=_QUALITY)
        answer = task.answer.strip()
        entries.append({"picture": name, "prompt": task.prompt, "answer": answer})
    text = json.dumps(entries, indent=1) + "\n"
    (folder / "prompts.json").write_text(text, encoding="utf-8")
    assert any(entry["prompt"] == CAPTION_START for entry in entries)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
