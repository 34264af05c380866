"""Write the course's running text: short passages that the lab's own model makes up, from openings
given here.

    python -m tools.write_text

Readers have no corpus, and a corpus has a licence. What SmolLM2 samples belongs to nobody else, is
English as this model knows it, and can be made again. It is fiction throughout: dates, names and
numbers in it are wrong.

Openings are a beginning and a subject (``"A short story about" + "a lighthouse"``). Held-out
passages have subjects that no training passage has. Same seed and same machine, same files; another
processor may round a logit differently.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

import torch
from tqdm.auto import tqdm

from course_utils.labs.loading import load_model

ROOT = Path(__file__).resolve().parent.parent
BATCH = 60
"""Openings at once."""
BEGINNINGS = (
    "Once upon a time, in a town known for {}, there lived",
    "My grandmother used to tell me about {}. She said",
    "The history of {} began",
    "Everything you need to know about {}:",
    "Dear Anna, I am writing to you because of {}.",
    "In this lesson we will learn about {}. First,",
    "When John asked his teacher about {}, she",
    "Scientists who study {} have found that",
    "Many people believe that {}",
    "The children had never seen {} before. They",
    "If you are interested in {}, you should",
)  # fmt: skip
SUBJECTS = (
    "the lighthouse", "bread", "the railway", "wild bees", "the old bridge", "chess", "the moon",
    "vegetable gardens", "the city museum", "sailing ships", "the winter market", "mountain roads",
    "the piano", "school libraries", "the river", "clocks", "the village doctor", "rainforests",
    "painting", "the football club", "honey", "computers", "volcanoes", "the post office", "horses",
    "public parks", "the theatre", "rice", "electric cars", "the desert", "letters", "coral reefs",
    "the bakery", "maps", "the night sky", "tea", "small islands", "the law court", "bicycles",
    "glass", "the hospital", "dragons", "the harvest", "photography", "wolves", "the census",
    "silk", "earthquakes", "the orchestra", "money",
)  # fmt: skip
HELD_OUT_SUBJECTS = (
    "the castle", "salt", "birds", "the telephone", "ancient coins", "the fire brigade", "swimming",
    "the forest", "poetry", "cheese",
)  # fmt: skip


PLAIN = str.maketrans("’“”–—", '\'""--')


def openings(subjects: tuple[str, ...]) -> list[str]:
    """Every beginning with every subject, shuffled."""
    every = [beginning.format(subject) for beginning in BEGINNINGS for subject in subjects]
    random.Random("openings").shuffle(every)
    return every


def tidy(passage: str) -> str | None:
    """One line that ends with a sentence; None if it is short, repeats itself or is not plain
    English.
    """
    passage = " ".join(passage.translate(PLAIN).split())
    end = max(passage.rfind(mark) for mark in (". ", "? ", "! ", '." ', ".")) + 1
    passage = passage[:end].strip()
    words = passage.split()
    plain = passage.isascii() and not re.search(r"https?:|[#*_|<>{}\\\[\]]| - .* - .* - ", passage)
    return passage if plain and len(words) >= 50 and len(set(words)) > 0.55 * len(words) else None


@torch.inference_mode()
def continued(model, tokenizer, starts: list[str], seed: str) -> list[str]:
    """What the model makes of a batch of openings."""
    torch.manual_seed(random.Random(seed).getrandbits(32))
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.bos_token
    starts = [tokenizer.bos_token + start for start in starts]
    tokens = tokenizer(starts, return_tensors="pt", padding=True, add_special_tokens=False)
    settings = dict(
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        max_new_tokens=118,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer.batch_decode(model.generate(**tokens, **settings), skip_special_tokens=True)


def write(model, tokenizer, subjects: tuple[str, ...], *, seed: str, max_bytes: float) -> list[str]:
    """A passage for each opening that gives a tidy one, until there is enough.

    Batches are kept in build/text/, so that a run that is cut off goes on when it is started again.
    """
    passages: dict[str, None] = {}  # in order, each once
    starts = openings(subjects)
    for i in tqdm(range(0, len(starts), BATCH), desc=f"writing {seed}"):
        kept = ROOT / "build" / "text" / f"{seed}_{i}.json"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(
                json.dumps(continued(model, tokenizer, starts[i : i + BATCH], f"{seed}_{i}"))
            )
        for passage in filter(None, map(tidy, json.loads(kept.read_text()))):
            if sum(len(other) + 1 for other in passages) + len(passage) + 1 > max_bytes:
                return list(passages)
            passages[passage] = None
    return list(passages)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lab", default="smollm2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-kb", type=float, default=200, help="the size of a file, at most")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "text")
    args = parser.parse_args()
    model, tokenizer = load_model(args.lab)
    args.out.mkdir(parents=True, exist_ok=True)
    for split, subjects in (("held_out", HELD_OUT_SUBJECTS), ("train", SUBJECTS)):
        passages = write(
            model, tokenizer, subjects, seed=f"{split}_{args.seed}", max_bytes=1000 * args.max_kb
        )
        path = args.out / f"{split}.txt"
        path.write_text("\n".join(passages) + "\n", encoding="utf-8")
        print(f"wrote {path.name}: {len(passages)} passages, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
