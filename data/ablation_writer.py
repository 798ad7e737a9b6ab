"""Writes the data of the HR ablation: pictures, records, and the licence behind each of them."""

import csv
import json

from ablation_licences import OWN

MOST_TURNS = 4  # of a record of stage 2
LISTED_AGAIN = 2  # of the lists of stage 0 one in so many is in stage 1 too, which is about captions as well


def record(identity, name, pairs, **more):
    """A record of (question, answer) pairs in LLaVA's form; `name` None: of text alone."""
    turns = []
    for i, (question, answer) in enumerate(pairs):
        marker = "" if i or name is None else "<image>\n" if question else "<image>"
        turns += [{"from": "human", "value": marker + question}, {"from": "gpt", "value": answer}]
    image = {} if name is None else {"image": f"{name}.webp"}
    return {"id": identity, **image, **more, "conversations": turns}


class Writer:
    """Pictures, records and licences, counted up."""

    def __init__(self, out, packages, licences):
        self.out, self.packages, self.licences = out, packages, licences
        self.rows, self.text_rows, self.lists = [], [], 0
        self.records = {"pretrain": [], "align": [], "train": [], "heldout": []}

    def sources(self, sources):
        """[what is said of them, their licences] of (source, path) pairs; BuildError where one has none."""
        said = [f"{self.packages[source]['package']} {self.packages[source]['version']}: {path}" for source, path in sources]
        licences = sorted({self.licences.of(source, path) for source, path in sources})
        return ["; ".join(said), "; ".join(licences)]

    def picture(self, name, picture):
        """Saves it as images/NAME.webp."""
        path = self.out / "images" / f"{name}.webp"
        self.rows.append([f"{name}.webp", *self.sources(picture.sources)])
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.image.save(path, format="WEBP", quality=70, method=4)

    def train(self, name, picture, rng, first=()):
        """A record of the questions in random order, of many some, behind those of `first`."""
        turns = [*first, *rng.sample(picture.turns, min(MOST_TURNS - len(first), len(picture.turns)))]
        self.records["train"].append(record(name, name, [(turn.question, turn.answer) for turn in turns]))

    def text(self, name, text):
        """A record of text alone, for stage 2."""
        self.records["train"].append(record(name, None, [(text.question, text.answer)]))
        self.text_rows.append([name, *(self.sources([text.source]) if text.source else ["", OWN])])

    def caption(self, split, name, picture):
        self.records[split].append(record(name, name, [("", picture.caption)]))

    def listed(self, name, picture):
        """What stage 0 lists, and of each kind of picture every LISTED_AGAIN-th in stage 1 too."""
        self.caption("pretrain", name, picture)
        self.lists += 1
        if self.lists % LISTED_AGAIN == 0:
            self.caption("align", name, picture)

    def heldout(self, name, picture):
        """A record of every question."""
        for i, turn in enumerate(picture.turns):
            more = {"boxes": [list(box) for box in turn.boxes]} if turn.boxes else {}
            self.records["heldout"].append(
                record(f"{name}_{i}", name, [(turn.question, turn.answer)], task=turn.task, size=turn.size, **more))

    def close(self):
        for name, records in self.records.items():
            text = json.dumps(records, indent=0, ensure_ascii=False)
            (self.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        for name, key, rows in (("licences", "picture", self.rows), ("text_licences", "record", self.text_rows)):
            with open(self.out / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([[key, "sources", "licences"], *sorted(rows)])
