"""Chat templates, image-aware tokenisation and label masks as LLaVA and MGM compute them, by counting tokens
of rounds; for comparing with ours, which marks spans of text."""
import dataclasses

IMAGE = -200
IGNORE = -100

ASSISTANT = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
             "detailed, and polite answers to the user's questions.")
LLAMA2_SYSTEM = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\nIf a question does not make "
    "any sense, or is not factually coherent, explain why instead of answering something not correct. If you don't "
    "know the answer to a question, please don't share false information.")
VISION = ("You are a helpful language and vision assistant. You are able to understand the visual content that the "
          "user provides, and assist the user with a variety of tasks using natural language.")
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"


@dataclasses.dataclass
class Style:
    kind: str
    system: str
    roles: tuple
    sep: str
    sep2: str = ""


STYLES = {
    "v1": Style("two", ASSISTANT, ("USER", "ASSISTANT"), " ", "</s>"),
    "llava_v1": Style("two", ASSISTANT.replace("user", "human"), ("USER", "ASSISTANT"), " ", "</s>"),
    "phi_2": Style("two", ASSISTANT, ("USER", "ASSISTANT"), " ", "<|endoftext|>"),
    "gemma": Style("gemma", "", ("user", "model"), "", "<eos>"),
    # The assistant's header says "system", as in the published weights.
    "llama_3": Style("mpt", HEADER.format("system") + VISION, (HEADER.format("user"), HEADER.format("system")),
                     "<|eot_id|>"),
    "mistral_instruct": Style("llama_2", "", ("USER", "ASSISTANT"), "<s>", "</s>"),
    "llama_2": Style("llama_2", LLAMA2_SYSTEM, ("USER", "ASSISTANT"), "<s>", "</s>"),
    "llava_llama_2": Style("llama_2", VISION, ("USER", "ASSISTANT"), "<s>", "</s>"),
    "chatml_direct": Style("mpt", "<|im_start|>system\nAnswer the questions.",
                           ("<|im_start|>user\n", "<|im_start|>assistant\n"), "<|im_end|>"),
    "mpt": Style("mpt", "<|im_start|>system\nA conversation between a user and an LLM-based AI assistant. The "
                 "assistant gives helpful and honest answers.",
                 ("<|im_start|>user\n", "<|im_start|>assistant\n"), "<|im_end|>"),
}


def render(name, messages):
    """messages: texts, user first; the last may be None: a prompt."""
    s = STYLES[name]
    text = "" if s.kind == "llama_2" else s.system + s.sep
    for i, message in enumerate(messages):
        role, user = s.roles[i % 2], i % 2 == 0
        if s.kind == "two":
            text += role + ": " + message + (s.sep if user else s.sep2) if message is not None else role + ":"
        elif s.kind == "mpt":
            text += role + message + s.sep if message is not None else role
        elif s.kind == "gemma":
            text += "<start_of_turn>" + role + "\n"
            if message is not None:
                text += message + "<end_of_turn>\n" + (s.sep if user else s.sep2)
        elif message is not None:
            if i == 0 and s.system:
                message = f"<<SYS>>\n{s.system}\n<</SYS>>\n\n" + message
            text += s.sep + "[INST] " + message + " [/INST]" if user else " " + message + " " + s.sep2
    return text.lstrip(s.sep) if s.kind == "llama_2" else text


def tokenize(text, tokenizer):
    """tokenizer_image_token"""
    pieces = [tokenizer(piece).input_ids for piece in text.split("<image>")]
    offset = 1 if pieces[0] and pieces[0][0] == tokenizer.bos_token_id else 0
    ids = pieces[0][:offset]
    for i, piece in enumerate(pieces):
        ids += ([IMAGE] if i else []) + piece[offset:]
    return ids


def rounds_of(name, text):
    s = STYLES[name]
    if s.kind != "mpt":
        return text.split(s.sep2)
    parts = text.split(s.sep)
    return [s.sep.join(parts[:3])] + [s.sep.join(parts[i:i + 2]) for i in range(3, len(parts), 2)]


def split_at(name):
    s = STYLES[name]
    return {"two": s.sep + s.roles[1] + ": ", "llama_2": "[/INST] ", "gemma": "<start_of_turn>" + s.roles[1] + "\n",
            "mpt": s.sep + s.roles[1]}[s.kind]


def labels(name, text, tokenizer):
    """ids and labels of a whole conversation by the counting formulas; asserts that they come out even."""
    s = STYLES[name]
    ids = tokenize(text, tokenizer)
    out = list(ids)
    legacy = tokenizer.legacy
    start = 0 if s.kind == "mpt" else 1
    out[:start] = [IGNORE] * start
    at = start
    for i, part in enumerate(rounds_of(name, text)):
        halves = part.split(split_at(name))
        if part == "" or len(halves) != 2:
            break
        whole, instruction = len(tokenize(part, tokenizer)), len(tokenize(halves[0] + split_at(name), tokenizer))
        if s.kind in ("two", "llama_2"):
            instruction -= 2
            if s.kind == "two" and i > 0 and not legacy:
                whole, instruction = whole - 1, instruction - 1
        elif s.kind == "gemma":
            instruction -= 1
        else:
            instruction -= 1
            if legacy:
                whole, instruction = whole + 1, instruction + 1
        out[at:at + instruction] = [IGNORE] * instruction
        at += whole
    assert at == len(ids), f"the formulas do not come out even: {at} of {len(ids)}"
    return ids, out


def plain(caption, tokenizer):
    ids = tokenize("<image>" + caption + "\n", tokenizer)
    masked = len(tokenize("<image>", tokenizer))
    return ids, [IGNORE] * masked + ids[masked:]
