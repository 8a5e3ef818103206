"""Makes a byte-level corpus out of this repository's own text: train.u16 and held-out.u16, one token a byte."""

import array
import pathlib

here = pathlib.Path(__file__).parent
root = here.parent.parent
suffixes = {".rs", ".md", ".toml", ".py", ".sh", ".cu"}
files = sorted(
    path
    for folder in ("crates", "cli", "tests", "docs", "examples")
    for path in (root / folder).rglob("*")
    if path.suffix in suffixes and path.is_file()
)
END_OF_DOCUMENT = 256

train, held_out = array.array("H"), array.array("H")
for index, path in enumerate(files):
    part = held_out if index % 20 == 7 else train
    part.extend(path.read_bytes())
    part.append(END_OF_DOCUMENT)
for name, tokens in (("train", train), ("held-out", held_out)):
    with open(here / f"{name}.u16", "wb") as file:
        tokens.tofile(file)
    print(f"{name}: {len(tokens)} tokens")
