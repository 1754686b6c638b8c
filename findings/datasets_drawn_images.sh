#!/usr/bin/env bash
# Library:   datasets 5.2.0, with Pillow 13.0.0, pyarrow 26.0.1 and pandas 3.1.1
# Behaviour: An image that a function of map() returns is kept as the address of its file, if it was opened from one.
#            What was done to it since is lost: a face painted over, a box drawn around an object, thumbnail(). The same
#            function keeps its work where images lie inside the table (Parquet of a hub), where the dataset is a
#            stream, or where it works on a copy. Dataset.from_list does the same. There is no warning, and what is
#            saved is the old image.
# Output:    painted black by map(), of a folder: white, 64 x 48
#            saved and loaded: white, 64 x 48
#            the same of images inside the table: black, 64 x 48
#            the same of a folder as a stream: black, 64 x 48
#            the same of a folder, on a copy: black, 64 x 48
#            made smaller by thumbnail() and given to Dataset.from_list: white, 64 x 48
# Matters:   Who hides faces before training, or marks what a question is about, trains on the images as they were.
#            Here an image is encoded from its pixels after its last change, and handed on as bytes, never as an object
#            that knows a file (megatron_apriel/data/visual_tasks/pixels.py, data/corpus/stored_images.py).
set -euo pipefail
unset PYTHONPATH

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet datasets==5.2.0 pillow==13.0.0 pyarrow==26.0.1 pandas==3.1.1

cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1
environment/bin/python - <<'PYTHON' || { echo "the behaviour has changed" >&2; exit 1; }
import sys
from pathlib import Path

import datasets
from PIL import Image

datasets.disable_progress_bars()
Path("pictures").mkdir()
Image.new("RGB", (64, 48), "white").save("pictures/face.png")
given = {"path": "imagefolder", "data_dir": "pictures", "split": "train"}
seen = []


def painted(row: dict[str, Image.Image]) -> dict[str, Image.Image]:
    """The row, with its image painted over."""
    row["image"].paste("black", (0, 0, 64, 48))
    return {"image": row["image"]}


def show(what: str, rows: datasets.Dataset | datasets.IterableDataset) -> None:
    """Print and keep what the first image of a dataset is."""
    image = next(iter(rows))["image"].convert("L")
    colour = {0: "black", 255: "white"}[image.getpixel((5, 5))]
    seen.append(f"{colour}, {image.width} x {image.height}")
    print(f"{what}: {seen[-1]}")


folder = datasets.load_dataset(**given)
changed = folder.map(painted)
show("painted black by map(), of a folder", changed)
changed.save_to_disk("saved")
show("saved and loaded", datasets.load_from_disk("saved"))
data = [Path("pictures/face.png").read_bytes()]
inside = datasets.Dataset.from_dict({"image": data}).cast_column("image", datasets.Image())
show("the same of images inside the table", inside.map(painted))
show("the same of a folder as a stream", datasets.load_dataset(**given, streaming=True).map(painted))
show("the same of a folder, on a copy", folder.map(lambda row: painted({"image": row["image"].copy()})))
image = Image.open("pictures/face.png")
image.thumbnail((16, 16))
rows = datasets.Dataset.from_list([{"image": image}])
show("made smaller by thumbnail() and given to Dataset.from_list", rows)
kept, lost = "black, 64 x 48", "white, 64 x 48"
sys.exit(seen != [lost, lost, kept, kept, kept, lost])
PYTHON
