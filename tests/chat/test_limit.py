"""A template that never ends is interrupted, in any thread; one that ends is not."""

from __future__ import annotations

import threading
import time

import pytest

from prefdata.chat import template
from prefdata.chat.limit import TooLong, limited
from prefdata.chat.template import ChatTemplate
from prefdata.errors import ModelError

SAID = ({"role": "user", "content": "hi"},)
ENDLESS = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a loop that catches": "{% for a in range(99999) %}{% for b in range(99999) %}{{ b.x }}{% endfor %}{% endfor %}",
    "a filter": "{% for a in range(99999) %}{{ range(99999) | map('string') | join }}{% endfor %}",
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS)
def test_a_template_that_never_ends(monkeypatch, source):
    monkeypatch.setattr(template, "LONGEST_RENDERING", 0.5)
    endless = ChatTemplate("m", source, source)
    with pytest.raises(ModelError, match="it may never end"):
        endless.render(SAID)
    good = ChatTemplate("m", "{{ messages[0].content }}", "")
    assert good.render(SAID).text == "hi"  # nothing is left over


def test_a_recursion_that_never_ends_is_refused():
    source = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}"
    with pytest.raises(template.TemplateRefusal):
        ChatTemplate("m", source, source).render(SAID)


def test_threads_are_interrupted_each_by_itself():
    ended = {}

    def work(name: str, seconds: float) -> None:
        try:
            with limited(0.5):
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    pass
            ended[name] = True
        except TooLong:
            ended[name] = False

    threads = [threading.Thread(target=work, args=one) for one in (("short", 0.01), ("long", 60.0), ("other", 0.02))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert ended == {"short": True, "long": False, "other": True}


def test_blocks_that_end_as_the_time_does_leave_nothing_behind():
    """The interruption comes between two instructions: never later than the block that it is for."""
    cut = 0
    for number in range(300):
        try:
            with limited(-1.0 if number % 2 else 60.0):
                for _ in range(number * 10):
                    pass
        except TooLong:
            cut += 1
        sum(range(1000))
    assert cut <= 150
