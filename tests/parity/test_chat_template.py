"""Jinja chat templates: our renderer against jinja2 with transformers' settings, on templates of published models
(below, as their repositories have them, and those of llama.cpp's tests) and on the language's corners; and what
`mgm inspect`, `mgm doctor` and loading say of a template that differs from the chat format in use."""
import json
import random
import shutil
import subprocess

import mgm_oracle
import pytest
from real_files import fetched, smollm2
from test_bpe_parity import close
from test_gguf_import import redrawn
from test_tokenizer_parity import BUILD, ROOT, Side, mgm
from transformers.utils.chat_template_utils import _compile_jinja_template

EMBEDDED = ROOT / "data/embedded/tokenizer"
PUBLISHED = {
    "llama-2": """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}""",
    "llama-3": """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""",
    "mistral-7b": """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}""",
    "qwen2": """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "yi": """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}{% endif %}{% if system_message is defined %}{{ system_message }}{% endif %}{% for message in messages %}{% set content = message['content'] %}{% if message['role'] == 'user' %}{{ '<|im_start|>user\\n' + content + '<|im_end|>\\n<|im_start|>assistant\\n' }}{% elif message['role'] == 'assistant' %}{{ content + '<|im_end|>' + '\\n' }}{% endif %}{% endfor %}""",
    "phi-3": """{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}""",
    "vicuna": """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'].strip() + ' ' %}{% else %}{% set loop_messages = messages %}{% set system_message = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions. " %}{% endif %}{{ system_message }}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'].strip() + ' ' }}{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'].strip() + eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}""",
    "tulu": """{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}""",
    "generation": """{%- for m in messages %}\n    {%- if m.role == 'assistant' -%}\n        {% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}\n    {%- else %}\n        {{- m.role }}: {{ m.content -}}\n    {% endif %}\n{%- endfor %}""",
}
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None}


def conversations():
    user = lambda text: {"role": "user", "content": text}
    answer = lambda text: {"role": "assistant", "content": text}
    system = {"role": "system", "content": "  Be brief.\n"}
    turns = [user("How are you?"), answer("I am well. "), user("Was ist das?\n\nÄpfel 猫"), answer("<think>hm</think>\n\nEin Apfel"),
             user(" {{ x }} ")]
    tool = {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "id": "abcdef012", "function": {"name": "get", "arguments": {"a": 1, "b": ["é", None, 1.5, True]}}}]}
    for first in ([], [system]):
        for n in (1, 2, 3, 4, 5):
            for prompt in (True, False):
                yield {"messages": first + turns[:n], "add_generation_prompt": prompt}
    yield {"messages": [user("a"), tool, {"role": "tool", "content": "3", "name": "get", "tool_call_id": "abcdef012"}],
           "add_generation_prompt": True}
    yield {"messages": [answer("first")], "add_generation_prompt": False}
    yield {"messages": [user("a")], "add_generation_prompt": True, "enable_thinking": False}


@pytest.fixture(scope="module")
def probe():
    side = Side(None, EMBEDDED)
    yield side
    close(side)


def both(probe, template, names):
    """(ours, theirs): a text, or None where it is refused."""
    names = {**NAMES, **names}
    try:
        theirs = _compile_jinja_template(template).render(**names)
    except Exception:  # whatever Python makes of it
        theirs = None
    got = probe.ask(jinja=template, names=names)
    return got.get("text"), theirs, got


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published(probe, name):
    rendered = 0
    for names in conversations():
        ours, theirs, got = both(probe, PUBLISHED[name], names)
        assert "unsupported" not in got, got
        assert ours == theirs, (names, got)
        rendered += ours is not None
    assert rendered >= 5


def test_published_files(probe):
    """Every template of llama.cpp's tests."""
    folder, count = fetched("llama.cpp"), 0
    for path in sorted(folder.glob("*.jinja")):
        for names in conversations():
            ours, theirs, got = both(probe, path.read_text(), names)
            assert "unsupported" not in got and ours == theirs, (path.name, names, got)
            count += ours is not None
    assert count > 400


CORNERS = r"""
{{ 1 + 2 * 3 - 4 // 3 % 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 1 ~ 'a' ~ true ~ none }} {{ 1.5 + 1 }}
{{ 'a' if x else 'b' }}{{ 'a' if false }}|{{ 1 < 2 < 3 }}{{ 3 > 2 >= 2 != 1 }}{{ 'a' in 'bab' }}{{ 'k' not in {'k': 1} }}
{{ not x }}{{ x and y }}{{ x or 'z' }}{{ none or 0 or '' }}{{ none | map('upper') | list | length }}{{ [] or 'end' }}
{{ [1, 2, 3][-1] }}{{ [1, 2, 3][5] }}{{ 'äöü'[1] }}{{ 'äöü'[::-1] }}{{ 'äöüß'[1:-1] }}{{ 'abc'[5:] }}{{ 'abcdef'[4:1:-2] }}
{{ [1,2,3][1:] | length }}{{ 'äö' | length }}{{ {'a': 1, 'b': 2} | length }}{{ nothing | length }}
{{ '  a b ' | trim }}|{{ 'xxaxx'.strip('x') }}|{{ ' a '.lstrip() }}|{{ ' a '.rstrip() }}|{{ '-a-' | trim('-') }}
{{ 'a,b,c'.split(',') | join('-') }}{{ ' a  b '.split() | join('|') }}{{ 'a,b,c'.split(',', 1)[1] }}{{ 'aXbX'.split('X') | length }}
{{ 'Hello' | upper }}{{ 'Hello' | lower }}{{ 'hello World' | capitalize }}{{ 'abab' | replace('a', 'c') }}{{ 'aaa'.replace('a', 'b', 2) }}
{{ 'abc'.startswith('ab') }}{{ 'abc'.endswith('bc') }}{{ 'abc'.find('c') }}{{ 'abc'.find('z') }}{{ 'aaa'.count('a') }}{{ 'prefix'.removeprefix('pre') }}
{{ d.get('a') }}{{ d.get('z') }}{{ d.get('z', 5) }}{{ d['a'] }}{{ d.a }}{{ d.z }}{{ d['z'] | default('dd') }}{{ '' | default('e', true) }}{{ '' | default('e') }}|
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for c in 'äb' %}{{ c }}.{% endfor %}
{% for x in [1,2,3,4] if x % 2 == 0 %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ x }}{% else %}none{% endfor %}
{% for x in [] %}{{ x }}{% else %}empty{% endfor %}{% for x in [1,2,3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}{% for x in range(5) %}{% if x == 3 %}{% break %}{% endif %}{{ x }}{{ loop.cycle('a', 'b') }}{% endfor %}
{% set v = 1 %}{% for x in [1, 2] %}{{ v }}{% set v = 5 %}{{ v }}{% endfor %}{{ v }}{% if true %}{% set v = 7 %}{% endif %}{{ v }}
{% set ns = namespace(a=1, found=false) %}{% for x in [1, 2] %}{% set ns.a = ns.a + x %}{% endfor %}{{ ns.a }}{{ ns.found }}{% set ns.new = 'n' %}{{ ns.new }}
{% set a, b = 1, 'two' %}{{ a }}{{ b }}{% set block %}  in {{ a }} {% endset %}[{{ block }}]{% set up | upper | trim %} abc {% endset %}[{{ up }}]
{% macro m(a, b='d', c=none) %}{{ a }}-{{ b }}-{{ c }}{{ v }}{% endmacro %}{{ m(1) }} {{ m(1, c=3) }} {{ m(b=2, a='x') }} {{ m() }}
{% macro rec(n) %}{{ n }}{% if n > 0 %}{{ rec(n - 1) }}{% endif %}{% endmacro %}{{ rec(3) }}
{{ x is defined }}{{ nothing is defined }}{{ nothing is not defined }}{{ not nothing is defined }}{{ none is none }}{{ 'a' is string }}{{ 1 is string }}{{ d is mapping }}{{ [1] is mapping }}{{ 'a' is iterable }}{{ 1 is iterable }}{{ [1] is sequence }}
{{ 1 is number }}{{ true is number }}{{ true is boolean }}{{ 1 is integer }}{{ 1.0 is float }}{{ 3 is odd }}{{ 3 is even }}{{ 6 is divisibleby 3 }}{{ 1 is equalto 1 }}{{ 1 is in [1, 2] }}{{ false is false }}{{ 0 is false }}{{ true is sameas true }}
{{ items | selectattr('r', 'equalto', 'u') | list | length }}{{ items | rejectattr('r', 'equalto', 'u') | map(attribute='n') | join(',') }}{{ items | map(attribute='n') | first }}{{ items | selectattr('n') | list | length }}{{ ['a', 'b'] | map('upper') | join }}{{ [1, 2, 3] | select('odd') | list | last }}
{{ items | tojson }}{{ 'a"\n<é>\u0001' | tojson }}
{{ items | tojson(indent=2) }}
{{ [[], {}, [1]] | tojson(indent=4) }}
{{ [3, 1] | reverse | join }}{{ 'abc' | reverse }}{{ '12' | int + 1 }}{{ 'x' | int }}{{ 3.7 | int }}{{ -3 | abs }}{{ [1, 2] | last }}{{ 'a\nb\n\nc' | indent(2) }}{{ 'a\nb' | indent(2, true) }}
{{ "it's" 'joined' "\"q\" \t \\ \x41 \u00e9 \d" }}{{ ('a', 'b') | join }}{{ {'a': {'b': [1, {'c': 'deep'}]}}.a.b[1].c }}{{ items.0.n }}
   {% if true %}
   indented {# a comment #}
   {% endif %}
{#- trimmed -#}
   {%+ if true %} kept {%+ endif %}
	{%- if true -%}   tight   {%- endif -%}   next
{{- ' minus ' -}}
end {{ 'a' }}
{{ 'newline kept' }}
{% filter upper %}filtered {{ 'text' }}{% endfilter %}
{% if 1 == 1.0 and [1, 'a'] == [1, 'a'] and {'a': 1} == {'a': 1} and 'a' != 1 %}equal{% endif %}{% if undefined_thing == none %}no{% else %}yes{% endif %}
{{ 9223372036854775 * 1000 + 807 }}{{ -9223372036854775 * 1000 - 808 }}{{ -5 % (461168601842738790 * 10 + 4) }}{{ 5 % (-461168601842738790 * 10 - 4) }}{{ (461168601842738790 * 10.0) / 7 }}{{ -7 // -2 }}{{ 7 // -2 }}{{ 7 % -2 }}{{ -7 % -2 }}{{ 6 % -2 }}
{{ (-461168601842738790 * 20 - 8) // 3 }} {{ (-461168601842738790 * 20 - 8) % 3 }} {{ 461168601842738790 * 19 % (461168601842738790 * 20) }} {{ 5 % (-461168601842738790 * 20 - 8) }} {{ -5 // (461168601842738790 * 20) }}
{{ (-461168601842738790 * 20 - 8) is divisibleby(-1) }}{{ (-461168601842738790 * 20 - 8) % -1 }}{{ (-461168601842738790 * 20 - 8) is odd }}{{ 9007199254740993 == 9007199254740992 }}{{ 9007199254740993 > 9007199254740992.0 }}{{ 9007199254740992 == 9007199254740992.0 }}
{{ 100000.0 }} {{ 0.0001 }} {{ 0.00001 }} {{ -0.0 }} {{ 0.1 + 0.2 }} {{ 1.0 / 3 }} {{ 9007199254740993.0 }} {{ 1234567890123456.0 * 10 }} {{ 123456789.0 * 123456789 * 123456789.0 }} {{ [0.1 + 0.2, 1000000.0, 0.00001] | tojson }}
{{ '12' | int }}{{ ' -7 ' | int }}{{ 'x1' | int(5) }}{{ 'e' | int }}{{ '' | int }}{{ none | int(3) }}{{ [] | int }}{{ -3.7 | int }}{{ true | int }}{{ true | abs }}{{ -2.5 | abs }}
{{ 'aXbXc'.split('X', -5) | join }}{{ 'aaa'.replace('a', 'b', -7) }}{{ 'aaa' | replace('a', 'b', 0) }}{{ 'äbä'.find('b') }}{{ 'ababab'.count('ab') }}{{ '' in 'a' }}{{ 'aab' in 'aaab' }}{{ 'abc'.find('') }}{{ ''.find('') }}{{ ''.find('a') }}
{{ ' äxä '.strip('ä ') }}|{{ 'ää'.strip('ä') }}|{{ 'xäx'.lstrip('x') }}|{{ 'xäx'.rstrip('x') }}|{{ '\u2003 a \u00a0' | trim }}|{{ '  a ' | trim | length }}|{{ ' \x1c\x0b' | trim | length }}|{{ 'a' | trim('') }}
{{ 'äöü'[-1] }}{{ 'äöü'[7] }}{{ 'äöü' | first }}{{ 'äöü' | last }}{{ '' | first }}{{ d | first }}{{ d | last }}{{ 'äöü' | list | length }}{{ 'äöü' | reverse }}{{ [1, 2, 3] | first }}{{ [1, 2, 3][::-1] | join }}{{ [1, 2, 3][-9:9:9] | join }}{{ 'a\n\nb\n' | indent(3, true, true) }}|{{ '' | indent(2, true) }}|
{% set ns2 = namespace(n=[]) %}{% for i in range(60) %}{% set ns2.n = [ns2.n] %}{% endfor %}{{ ns2.n | tojson }}{% for i in range(100) %}{% for k in range(100) %}{{ k if k == 99 and i == 99 }}{% endfor %}{% endfor %}
{{ bos_token ~ messages[0].content }}{{ messages[0]['content'][:3] }}{{ messages | length - 1 }}{{ (messages | length) > 1 and messages[-1].role or 'none' }}
"""


def test_corners(probe):
    names = {"x": 3, "y": "why", "d": {"a": 1, "b": "two", "items2": None},
             "items": [{"r": "u", "n": 1}, {"r": "a", "n": 2, "é": [None, True, 1.25]}, {"r": "u", "n": 0}],
             "messages": [{"role": "user", "content": "Hällo"}, {"role": "assistant", "content": "b"}]}
    wholes = [CORNERS, CORNERS.replace("\n", "\r\n"), CORNERS + "\n\n"]
    for text in wholes + CORNERS.splitlines():  # some lines alone are no template
        ours, theirs, got = both(probe, text, names)
        assert theirs is not None or text not in wholes, text
        assert ours == theirs, (text, got, theirs)


REFUSED = ["{{ nothing.a }}", "{{ nothing['a'] }}", "{{ nothing + 'a' }}", "{{ 'a' + 1 }}", "{{ none + 'a' }}", "{{ nothing() }}",
           "{{ raise_exception('no') }}", "{% if true %}", "{% for x in 5 %}{% endfor %}", "{{ 'a' < 1 }}", "{% endif %}", "{{ }}",
           "{{ 'open }}", "{% set a, b = [1] %}", "{{ 1 // 0 }}", "{{ nothing | int }}", "{{ 1 is divisibleby(0) }}", "{{ 1 % 0.0 }}", "{{ (1 }}", "{% nosuch %}", "{{ 'a'.nosuch() }}", "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}"]


@pytest.mark.parametrize("template", REFUSED)
def test_refused_by_both(probe, template):
    ours, theirs, got = both(probe, template, {})
    assert ours is None and theirs is None and "error" in got, got


SAID = ["{% raw %}{{ a }}{% endraw %}", "{% include 'a' %}", "{{ [1] }}", "{{ {'a': 1} }}", "{{ 2 ** 3 }}", "{{ 'ä' | upper }}",
        "{{ 'a' | wordcount }}", "{{ 'a'.title() }}", "{{ 'a' is upper }}", "{{ '%s' % 'a' }}", "{{ m(*[1]) }}",
        "{% for x in range(10000000) %}{% endfor %}", "{{ " + "(" * 300 + "1" + ")" * 300 + " }}", "{{ 1" + " + 1" * 9000 + " }}",
        "{% set x = 'aaaaaaaaaaaaaaaa' %}{% for i in range(1000) %}{% set ns = namespace(x=x) %}{% endfor %}"
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}", "{{ [1].append(2) }}"]
GROWS = "{% set ns = namespace(x=START, y=START) %}{% for i in range(TIMES) %}{% set ns.x = STEP %}{% endfor %}"


def grown(start, times, step, then=""):
    return GROWS.replace("START", start).replace("TIMES", str(times)).replace("STEP", step) + then


LEAST = "(-461168601842738790 * 20 - 8)"  # of 64 bits
LONG = grown("'aaaaaaaaaaaaaaaa'", 13, "ns.x + ns.x", "{% set t = ns.x %}")  # 128 KiB
FOREVER = "{% for i in range(90000) %}{% for k in range(90000) %}BODY{% endfor %}{% endfor %}"


def forever(body):
    return FOREVER.replace("BODY", body)


# Most of these took minutes, memory without end, or the process with it.
SAID += [
    grown("[1]", 40, "[ns.x, ns.x]"), grown("[1]", 90000, "[ns.x]"), grown("[1]", 90000, "[ns.x]", "{{ ns.x | tojson }}"),
    grown("[1]", 40, "{'a': ns.x, 'b': ns.x}"), grown("[1]", 90000, "[ns.x.append]"), grown("1", 300, "[ns.x] + [1]"),
    "{% set ns = namespace(x=1) %}{% set ns.x = ns %}", "{% set ns = namespace(x=1) %}{% set ns.x = {'a': [ns]} %}",
    "{% set ns = namespace(x=1) %}{% set other = namespace(y=[ns]) %}",
    LONG + forever("{% set y = t | upper %}"), LONG + forever("{% set y = t.split('b') %}"), LONG + forever("{% set y = t ~ '' %}"),
    LONG + forever("{% set y = t.find(t[:60000] + 'b' + t[:60000]) %}"), LONG + forever("{% set y = t.strip('b' ~ t) %}"),
    LONG + forever("{% set y = t.replace(t[:30000] ~ 'b', '') %}"), LONG + forever("{% set y = t.count(t[:30000] ~ 'b') %}"),
    LONG + "{% set l = t | replace('a', 'a,,') %}", LONG + "{% set l = range(90000) | map('default', t) | map('string') | map('replace', '1', t) | list %}",
    LONG + "{% set l = range(90000) | select('in', range(90000)) | list %}", LONG + "{{ t | replace('a', '\n') | indent(t, true, true) }}",
    LONG + "{{ range(90000) | join(attribute=t ~ t) }}", "{{ range(20000) | tojson(indent=100) }}", forever(""),
    "{{ x" + " is defined" * 90000 + " }}", "{{ x" + " or x" * 90000 + " }}", "{{ x" + " if x" * 90000 + " }}",
    "{% macro m(n) %}{{ m(n)" + " + 1" * 1500 + " }}{% endmacro %}{{ m(0) }}", "{{ 'a' | map(" + "'map', " * 4000 + "'upper') | list }}",
    "".join(f"{{% set a{i} = 1 %}}" for i in range(5000)), "{{ a }}" * 200000,
    # Integers and real numbers at their ends.
    f"{{{{ {LEAST} | abs }}}}", f"{{{{ -{LEAST} }}}}", f"{{{{ {LEAST} - 1 }}}}", f"{{{{ {LEAST} * -1 }}}}", f"{{{{ {LEAST} // -1 }}}}",
    f"{{{{ range({LEAST}, 3) }}}}", f"{{{{ range(3, 1, {LEAST}) | length }}}}", "{{ 99999999999999999.0 * 999999999999 | int }}",
    "{{ (99999999999999999.0 * 999999999999) | int }}", "{{ (n | int) }}", "{{ 9223372036854775807 }}", "{{ 1e400 }}",
    "{{ '1.5' | int }}", "{{ '1234567890123456789' | int }}", "{{ 'inf' | int }}", "{{ 'ff' | int(0, 16) }}", "{{ 9007199254740993 / 3 }}",
    "{{ 'a' | indent(100000) }}", "{{ 'a\\rb' | indent }}", "{{ 'a\\u2028b' | indent }}", "{{ [1] | tojson(indent=100000) }}", "{{ strftime_now('" + "%c" * 50 + "') }}"]


@pytest.mark.parametrize("template", SAID, ids=range(len(SAID)))
def test_what_is_beyond_us_is_said(probe, template):
    assert "unsupported" in probe.ask(jinja=template, names={"n": 1e300}), template[:200]


def test_names_beyond_us_are_said(probe):
    deep = 1
    for _ in range(200):
        deep = [deep]
    for value in (deep, [0] * 200000, "a" * 300000, 2**63):
        assert "unsupported" in probe.ask(jinja="{{ 1 }}", names={"n": value})


def test_long_conversations_are_not_beyond_us(probe):
    """Far more than a comparison with a format takes: the limits are on hostile templates."""
    tool = {"type": "function", "function": {"name": "get", "description": "Gets it. " * 50, "parameters": {
        "type": "object", "required": ["p1"], "properties": {f"p{i}": {"type": "string", "description": "One. " * 20} for i in range(8)}}}}
    turns = [{"role": role, "content": f"{role} says it. " * 100} for role in ("user", "assistant")] * 15
    names = {"messages": turns, "tools": [tool] * 4, "add_generation_prompt": True}
    for path in sorted(fetched("llama.cpp").glob("*.jinja")):
        got = probe.ask(jinja=path.read_text(), names={**NAMES, **names})
        assert "unsupported" not in got, (path.name, got)


def test_broken_templates(probe):
    """Cut and changed templates: rendered like jinja2, refused, or said to be beyond us; never a crash."""
    rng, rendered = random.Random(1), 0
    for _ in range(1500):
        text = rng.choice(list(PUBLISHED.values()))
        for _ in range(rng.randint(1, 2)):
            at, n = rng.randrange(len(text)), rng.randint(1, 6)
            text = text[:at] + rng.choice(["", "{%", "}}", " - ", "-%}", "'", "(", "| trim", "not ", "\n", "  "]) + text[at + n * rng.randint(0, 1):]
        names = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "add_generation_prompt": True}
        ours, theirs, got = both(probe, text, names)
        if ours is not None and theirs is not None:
            assert ours == theirs, text
            rendered += 1
        assert ours is None or theirs is not None, (text, got)
    assert rendered > 100


# ---- what the commands say ----------------------------------------------------------------------


def model_dir(folder, template=None, file=None, **config):
    """A directory of a small language model with the embedded tokenizer."""
    redrawn("llama").save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        source = EMBEDDED / name
        if source.exists():
            (folder / name).write_bytes(source.read_bytes())
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    if template is not None:
        settings["chat_template"] = template
    path.write_text(json.dumps(settings))
    if file is not None:
        (folder / "chat_template.jinja").write_text(file)
    if config:
        data = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**data, **config}))
    return folder


VICUNA = "{{ bos_token }}" + PUBLISHED["vicuna"]


def inspected(folder):
    return json.loads(mgm("inspect", folder, "--json"))["chat_template"]


def test_inspect(tmp_path):
    folder = model_dir(tmp_path, VICUNA)
    assert inspected(folder) == "tokenizer_config.json: as the format v1"
    said = inspected(model_dir(tmp_path, VICUNA.replace("polite", "rude")))
    assert 'a question: at character' in said and '"rude answers to' in said and '"polite answers to' in said
    at = int(said.split("at character ")[1].split(" ")[0])
    system = "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    assert at == len(system) and said.endswith("built-in formats like it: none")
    # An answer that ends otherwise, or a second turn, is seen too.
    said = inspected(model_dir(tmp_path, VICUNA.replace("+ eos_token", "+ eos_token + ' '")))
    assert "a question and its answer: at character" in said and 'it has " ", the format nothing more' in said
    # chat_template.jinja goes first; named templates; what cannot be rendered is said.
    assert inspected(model_dir(tmp_path, "x", file=VICUNA)).startswith("chat_template.jinja: as the format v1")
    (tmp_path / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": VICUNA}]
    assert inspected(model_dir(tmp_path, named)) == "tokenizer_config.json ('default' of 'tool_use, default'): as the format v1"
    said = inspected(model_dir(tmp_path, "{{ messages | dictsort }}"))
    assert "not compared with the format v1" in said and "it uses the filter 'dictsort'" in said
    said = inspected(model_dir(tmp_path, "{{ raise_exception('never') }}"))
    assert "not compared" in said and "the template refuses: never" in said
    assert inspected(model_dir(tmp_path)) == ""


@pytest.mark.parametrize("value,says", [
    (7, "'chat_template' is 7, expected text or a list of named templates"),
    ({"default": "x"}, """'chat_template' is {"default":"x"}, expected text or a list"""),
    (True, "'chat_template' is true, expected"),
    ([{"name": "tool_use", "template": "x"}, {"name": "rag", "template": "y"}],
     "'chat_template' is a list without a template named 'default'; it has 'tool_use, rag'"),
    ([], "it has none"), ([{"name": "default", "template": 5}], "an item of the list in 'chat_template' is not"),
    ([{"name": 3, "template": "x"}], "without a template named 'default'"), (["x"], "an item of the list")])
def test_a_chat_template_that_is_no_text(tmp_path, value, says):
    folder = model_dir(tmp_path, value)
    said = inspected(folder)
    assert said.startswith("tokenizer_config.json: ") and says in said and said.endswith("; the format v1 is taken here")
    # Another file that has one goes first.
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": VICUNA}))
    assert inspected(folder) == "chat_template.json: as the format v1"


def test_no_chat_template_that_is_meant(tmp_path):
    """null and an empty one: told by inspect, no reason to warn."""
    folder = mgm_oracle.Oracle(mgm_oracle.Sizes()).save(tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    options = ["--device", "cpu", "--prompt", "Hi", "--max-new-tokens", "1"]
    for value, kind in ((None, "null"), ("", "empty")):
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": value}))
        assert inspected(folder) == f"tokenizer_config.json: 'chat_template' is {kind}; the format v1 is taken here"
        assert "chat template" not in run("chat", folder, *options).stderr
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": 7}))
    assert ("was not compared with the format 'vicuna_v1': 'chat_template' is 7, expected text or a list of named templates"
            in run("chat", folder, *options).stderr)


def test_doctor_and_a_start_of_training(tmp_path):
    folder = tmp_path / "tokenizer"
    shutil.copytree(EMBEDDED, folder)
    options = ["configs/tiny/stage2.yaml", "--set", f"text.tokenizer={folder}", "--set", f"run.dir={tmp_path}/run",
               "--set", "model.projector.path=\"\"", "--set", "train.max_steps=1"]
    assert "chat template" not in run("doctor", *options).stdout
    (folder / "chat_template.jinja").write_text(VICUNA)
    assert "chat template" not in run("doctor", *options).stdout
    (folder / "chat_template.jinja").write_text(VICUNA.replace("polite", "rude"))
    said = "its chat template (chat_template.jinja) differs from the format 'vicuna_v1': a question: at character"
    assert said in " ".join(run("doctor", *options).stdout.split())
    assert said in run("train", *options, "--set", "train.device=cpu").stderr
    assert "chat template" not in run("train", *options, "--set", "train.device=cpu", "--set", f"run.dir={tmp_path}/plain",
                                      "--set", "text.template=plain", code=None).stderr


def run(*args, code=0):
    done = subprocess.run([str(BUILD / "bin/mgm"), *map(str, args)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


def test_loading(tmp_path):
    folder = mgm_oracle.Oracle(mgm_oracle.Sizes()).save(tmp_path / "model")
    options = ["--device", "cpu", "--prompt", "What is it?", "--max-new-tokens", "1"]
    assert "chat template" not in run("chat", folder, *options).stderr
    (folder / "chat_template.jinja").write_text("{{ bos_token }}" + PUBLISHED["qwen2"])
    said = run("chat", folder, *options).stderr
    assert "differs from the format 'vicuna_v1'" in said and '"<|im_start|>system' in said
    (folder / "chat_template.jinja").write_text("{{ messages | dictsort }}")
    assert "was not compared with the format 'vicuna_v1': it uses the filter 'dictsort'" in run("chat", folder, *options).stderr


def test_inspect_a_gguf(tmp_path):
    said = inspected(smollm2())
    assert said.startswith("SmolLM2-135M-Instruct.Q4_1.gguf: differs from the format v1") and "<|im_start|>system" in said
    # A file beside it goes first, as everywhere.
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside/model.gguf").symlink_to(smollm2())
    (tmp_path / "beside/chat_template.jinja").write_text(VICUNA)
    assert inspected(tmp_path / "beside").startswith("chat_template.jinja: ")
