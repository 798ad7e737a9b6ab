"""Captions, questions and answers of data/embedded, in LLaVA JSON, and the tokenizer trained on them.

Two properties make the set worth training on. An answer cannot come from the question alone: every
question about a picture is asked of several pictures with different answers. And it cannot come from an
earlier turn: a conversation holds one yes/no question at most, and turns come in any order.

Choices are drawn from hashes, not from `random`, so that every Python version builds the same files.
"""

import hashlib
import io
import json

import sentencepiece

CONVERSATIONS = 20  # of each trained picture in stage 2
TEXT_SHARE = 10  # one conversation in ten has no picture
PAIRS = 20  # two-picture questions
PAIR_COPIES = 4  # of each question about a pair in stage 2; a single picture's facts come up about eight times
DENIED = 2  # nouns denied of each picture; its own is affirmed as often
TURNS = (1, 2, 1, 3, 2, 1, 4, 2, 1, 3)  # turns of a picture's conversations, in a cycle
VOCABULARY = 1024

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
DESCRIBE = "<image>\nDescribe the picture."
WHAT = "What is in the picture?"
COLOUR = "What colour is it mostly?"
KIND = "Is it a drawing, a flag or a photo?"
CATEGORY = "Is it an animal, food or something else?"
COUNTRY = "Which country's flag is this?"
CATEGORIES = {"food": "Food", "animal": "An animal", "other": "Something else"}


def draw(*key):
    """A number that depends on nothing but the key."""
    text = "\x1f".join(str(k) for k in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def shuffled(items, *key):
    indices = sorted(range(len(items)), key=lambda i: draw(*key, i))
    return [items[i] for i in indices]


def capital(text):
    return text[0].upper() + text[1:]


def caption(picture):
    if picture["kind"] == "flag":
        return f"The flag of {picture['country']}: {picture['look']}."
    return picture["caption"]


def presence(picture, noun):
    """The yes/no question whether `noun` (a country for flags) is what a picture shows."""
    if picture["kind"] == "flag":
        return f"Is this the flag of {noun}?"
    verb = "Are" if noun in picture["plurals"] else "Is"
    return f"{verb} there {noun} in the picture?"


def name(picture):
    return picture["country"] if picture["kind"] == "flag" else picture["noun"]


def may_deny(picture, noun, also):
    return noun != name(picture) and noun not in also[name(picture)] | set(picture.get("also", []))


def denials(pictures, key):
    """For each picture a noun it does not show; every noun is used as often as there are pictures of it."""
    also = {name(p): set() for p in pictures}
    for p in pictures:
        for other in p.get("also", []):
            also.setdefault(other, set()).add(name(p))
    names = [name(p) for p in pictures]
    for attempt in range(10000):
        order = shuffled(names, key, attempt)
        if all(may_deny(p, noun, also) for p, noun in zip(pictures, order)):
            return {p["id"]: noun for p, noun in zip(pictures, order)}
    raise ValueError(f"no assignment of nouns to {len(pictures)} pictures; relax 'also' in the manifest")


def facts(picture, denied):
    """[(kind of question, question, answer)] of one picture."""
    flag = picture["kind"] == "flag"
    what = f"the flag of {picture['country']}" if flag else picture["noun"]
    out = [("what", WHAT, capital(what)), ("kind", KIND, f"A {picture['kind']}")]
    if "colour" in picture:
        out.append(("colour", COLOUR, capital(picture["colour"])))
    if "category" in picture:
        out.append(("category", CATEGORY, CATEGORIES[picture["category"]]))
    if flag:
        out.append(("country", COUNTRY, capital(picture["country"])))
    for noun in denied:
        out.append(("yes", presence(picture, name(picture)), "Yes"))
        out.append(("no", presence(picture, noun), "No"))
    return out


def record(identity, images, turns):
    """One LLaVA record; `turns` is [(question, answer)], the first carries the image markers."""
    out = {"id": identity}
    if images:
        out["image"] = images[0] if len(images) == 1 else images
    out["conversations"] = []
    for i, (question, answer) in enumerate(turns):
        markers = "<image>\n" * len(images) if i == 0 else ""
        out["conversations"] += [
            {"from": "human", "value": markers + question},
            {"from": "gpt", "value": answer},
        ]
    return out


def conversation(picture, known, number):
    """Conversation `number` of a picture: the opening question cycles through what is known of it, the
    others follow at random, without a second yes/no question, which the first would give away."""
    order = shuffled(known, "opening", picture["id"])
    turns = [order[number % len(order)]]
    for fact in shuffled(known, "turns", picture["id"], number):
        used = {kind for kind, _, _ in turns}
        closed = fact[0] in ("yes", "no") and used & {"yes", "no"}
        if len(turns) < TURNS[number % len(TURNS)] and fact[0] not in used and not closed:
            turns.append(fact)
    return record(f"{picture['id']}/{number}", [picture["image"]], [t[1:] for t in turns])


def picture_pairs(pictures):
    """PAIRS of pictures of different nouns, no picture in more than two of them."""
    nouned = [p for p in pictures if p["kind"] != "flag" and p["noun"] not in p["plurals"]]
    order = shuffled(nouned, "pairs", 0) + shuffled(nouned, "pairs", 1)
    out = []
    for a, b in zip(order[0::2], order[1::2]):
        separate = b["noun"] not in a.get("also", []) and a["noun"] not in b.get("also", [])
        if a["noun"] != b["noun"] and separate and len(out) < PAIRS:
            out.append((a, b))
    return out


def pair_records(pictures):
    """Two pictures in one record, asked for either of them."""
    out = []
    for first, second in picture_pairs(pictures):
        for asked, place in ((first, "first"), (second, "second")):
            question = f"What is in the {place} picture?"
            identity = f"pair/{first['id']}+{second['id']}/{place}"
            images = [first["image"], second["image"]]
            out.append(record(identity, images, [(question, capital(asked["noun"]))]))
    return out


def text_records(text, count):
    """`count` conversations of one to three turns; every fact opens equally often."""
    out = []
    for i in range(count):
        opening = text[i % len(text)]
        others = [t for t in shuffled(text, "text", i) if t is not opening]
        out.append(record(f"text/{i}", [], [opening] + others[: draw("text turns", i) % 3]))
    return out


def build_records(pictures, text):
    """{file name: records} of the five JSON files."""
    train = [p for p in pictures if p["split"] == "train"]
    held = [p for p in pictures if p["split"] == "heldout"]
    known, asked = {}, {}
    for group in (train, held):
        for is_flag in (False, True):
            part = [p for p in group if (p["kind"] == "flag") == is_flag]
            denied = [denials(part, f"deny {is_flag} {n}") for n in range(DENIED)]
            for p in part:
                nouns = sorted({d[p["id"]] for d in denied})
                (known if group is train else asked)[p["id"]] = facts(p, nouns)
    numbers = {"train": len(train), "flags": sum(p["kind"] == "flag" for p in train)}
    text = [(q, a.format(**numbers)) for q, a in text]

    stage2 = [conversation(p, known[p["id"]], n) for p in train for n in range(CONVERSATIONS)]
    pairs = pair_records(train)
    stage2 += [{**pair, "id": f"{pair['id']}/{n}"} for pair in pairs for n in range(PAIR_COPIES)]
    stage2 += text_records(text, len(stage2) // (TEXT_SHARE - 1))

    def questions(group, facts_of):
        out = []
        for p in group:
            for i, (kind, question, answer) in enumerate(dict.fromkeys(facts_of[p["id"]])):
                out.append(record(f"{p['id']}/{i}/{kind}", [p["image"]], [(question, answer)]))
        return out

    def captions(group):
        return [
            {
                "id": p["id"],
                "image": p["image"],
                "conversations": [
                    {"from": "human", "value": DESCRIBE},
                    {"from": "gpt", "value": caption(p)},
                ],
            }
            for p in group
        ]

    heldin = questions(train, known) + pairs
    heldin += [record(f"text/{i}/text", [], [turn]) for i, turn in enumerate(text)]
    return {
        "stage1_train.json": captions(train),
        "stage1_heldout.json": captions(held),
        "stage2_train.json": shuffled(stage2, "records"),
        "eval_heldin.json": heldin,
        "heldout.json": questions(held, asked),
    }


def dump(records):
    """JSON with a record a line."""
    lines = (json.dumps(r, ensure_ascii=False, separators=(",", ":")) for r in records)
    return "[\n" + ",\n".join(lines) + "\n]\n"


def texts(files):
    """Every piece of text of the set as the tokenizer sees it, plus the wrapping of template v1."""
    out = [SYSTEM]
    for records in files.values():
        for r in records:
            for i, turn in enumerate(r["conversations"]):
                value = turn["value"].replace("<image>", "")
                if i % 2 == 0:
                    out.append(f"{value} ASSISTANT:")
                    out.append(f"{SYSTEM} USER:" if i == 0 else f"USER: {value} ASSISTANT:")
                else:
                    out.append(value)
    return out


def train_tokenizer(sentences):
    """A sentencepiece model in the layout of LLaMA: <unk> <s> </s>, byte fallback, nothing normalised. All
    printable ASCII has pieces of its own; the line break is one piece, as template v1 puts it after every
    picture."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        hard_vocab_limit=True,
        byte_fallback=True,
        character_coverage=1.0,
        required_chars="".join(chr(c) for c in range(33, 127)),
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        user_defined_symbols=["\n"],
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def tokenizer_files(files):
    """{file name: bytes} of data/embedded/tokenizer."""
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "padding_side": "right",
        "sp_model_kwargs": {},
    }
    special = {k: config[k] for k in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return {
        "tokenizer.model": train_tokenizer(texts(files)),
        "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
        "special_tokens_map.json": (json.dumps(special, indent=2) + "\n").encode(),
    }
