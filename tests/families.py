"""Chat templates with the traits of many families of models, on the special tokens of the tiny tokenizer.

<bos>, <eos> and <eot> stand for whatever a family calls its tokens; headers are plain text.
"""

from __future__ import annotations

_TURNS = "{% for m in messages %}"

CHATML_BOS = (
    _TURNS + "{{ bos_token }}{{ m['role'] }}\n{{ m['content'] }}<eot>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}assistant\n{% endif %}"
)
"""A begin token that opens every turn, as small ChatML models have it."""

CHATML = "{{ bos_token }}" + CHATML_BOS.replace("{{ bos_token }}", "[im]")

LLAMA_2 = (
    _TURNS + "{% if m['role'] == 'user' %}{{ bos_token }}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
"""The begin token before each user turn, the end token after each response, no header that opens a response."""

LLAMA_3 = (
    "{{ bos_token }}" + _TURNS + "[{{ m['role'] }}]\n\n{{ m['content'] | trim }}<eot>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n\n{% endif %}"
)
"""Contents are trimmed; a turn ends with another token than eos."""

GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + _TURNS
    + "[{{ 'model' if m['role'] == 'assistant' else m['role'] }}]\n{{ m['content'] | trim }}<eot>\n{% endfor %}"
    "{% if add_generation_prompt %}[model]\n{% endif %}"
)
"""Another name for the assistant, and no system message."""

MISTRAL = (
    "{{ bos_token }}{% set ns = namespace(system='', turns=messages) %}{% if messages[0]['role'] == 'system' %}"
    "{% set ns.system = messages[0]['content'] + '\n\n' %}{% set ns.turns = messages[1:] %}{% endif %}"
    "{% set users = ns.turns | selectattr('role', 'equalto', 'user') | list %}"
    "{% for m in ns.turns %}{% if m['role'] == 'user' %}{{ '[INST] ' + (ns.system if m is sameas users[-1] else '') + "
    "m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
"""The system message stands in the last user turn."""

PHI = (
    _TURNS + "<|{{ m['role'] }}|>\n{{ m['content'] }}<eot>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
"""What is no prompt is closed by a second end token."""

ZEPHYR = (
    _TURNS + "<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

REASONING = (
    "{{ bos_token }}" + _TURNS + "{% if m['role'] == 'assistant' %}<|A|>{{ m['content'].split('</think>')[-1] }}"
    "{{ eos_token }}{% else %}<|U|>{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|A|><think>\n{% endif %}"
)
"""The reasoning of every response is dropped, and a sampled response begins inside of one."""

REASONING_KEPT = (
    "{{ bos_token }}" + _TURNS + "{% if m['role'] == 'assistant' %}<|A|><think>\n{{ m['content'] }}{{ eos_token }}"
    "{% else %}<|U|>{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|A|><think>\n{% endif %}"
)

THINKING = (
    _TURNS
    + "[im]{{ m['role'] }}\n{% set parts = m['content'].split('</think>') %}{% set end = parts[-1].lstrip('\n') %}"
    "{% if m['role'] == 'assistant' and loop.last %}{% set begin = parts[0] if parts | length > 1 else '' %}"
    "{{ '<think>\n' + begin.split('<think>')[-1].strip('\n') + '\n</think>\n\n' + end }}"
    "{% elif m['role'] == 'assistant' %}{{ end }}{% else %}{{ m['content'] }}{% endif %}<eot>\n{% endfor %}"
    "{% if add_generation_prompt %}[im]assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
"""An empty block of reasoning where a response has none; a variable closes it when sampling."""

GENERATION = (
    "{{ bos_token }}" + _TURNS + "[{{ m['role'] }}] {% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<eot>{% endgeneration %}{% else %}{{ m['content'] }}<eot>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)

FAMILIES = {
    "chatml": CHATML,
    "chatml-bos": CHATML_BOS,
    "llama-2": LLAMA_2,
    "llama-3": LLAMA_3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "phi": PHI,
    "zephyr": ZEPHYR,
    "reasoning-kept": REASONING_KEPT,
    "thinking": THINKING,
    "generation": GENERATION,
}
"""Those that keep a plain response, by name."""
