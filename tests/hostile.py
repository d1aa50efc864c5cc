"""Hostile servers, functions, files and folders, drawn by a seed: each is a command that must end in a sentence."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fake_server import FakeServer, chat

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1 << 31, 1 << 70, -(1 << 70), 0.5, float("nan"), float("inf"), -float("inf"), 1e308, "",
    " ", "\0",
    "x" * 5000, "\ud83d", "a\udc00b", "\u202e", "\x1b[2J\x1b]0;t\x07", "\r\n\t", "é", "名前", "👨‍👩‍👧", "NaN", "null",
    "../../etc/passwd", "/",
    "file:///etc/passwd", "%s%n{0}{x}{{", "'; drop table x; --", "=1+1", "|a|<b>", [], {}, [[]], [None],
    [1, "a", None], {"": None},
    {"role": "user"}, [{"role": "assistant", "content": None}], {"type": "text", "text": "x"}, "9" * 5000, "1e999",
    "10000-01-01",
)  # fmt: skip
"""Values that nobody expects, of every type."""

DEEP = "[" * 20_000 + "]" * 20_000


@dataclass
class Case:
    """A hostile command: what it is about, and its arguments; `close` ends what it started."""

    about: str
    arguments: list[Any]
    close: Callable[[], None] = lambda: None


def mutated(value: Any, rng: random.Random, times: int = 1) -> Any:
    """A copy of a JSON value with some of its nodes replaced, removed, doubled or wrapped."""
    value = json.loads(json.dumps(value))
    for _ in range(times):
        value = _once(value, rng)
    return value


def _once(value: Any, rng: random.Random) -> Any:
    inside = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not inside or rng.random() < 0.15:
        return rng.choice([rng.choice(ODD), [value], {"x": value}, str(value)])
    key = rng.choice(inside)
    how = rng.random()
    if how < 0.15:
        del value[key]
    elif how < 0.25 and isinstance(value, dict):
        value[str(rng.choice(ODD))] = value[key]
    elif how < 0.3 and isinstance(value, list):
        value += [value[key]] * rng.choice([1, 100])
    else:
        value[key] = _once(value[key], rng)
    return value


def raw(value: Any, rng: random.Random) -> bytes:
    """A JSON value as bytes, which are broken now and then."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    how = rng.random()
    if how < 0.06:
        return text[: rng.randrange(len(text) + 1)]
    if how < 0.1:
        place = rng.randrange(len(text) + 1)
        return text[:place] + bytes(rng.randrange(256) for _ in range(rng.choice([1, 4, 40]))) + text[place:]
    if how < 0.13:
        return text.replace(b'"', DEEP.encode() + b'"', 1)
    if how < 0.15:
        return DEEP.encode()[: rng.choice([20_000, 40_000])]
    return text


# Servers

_RESPONSE = chat("fine") | {"id": "x", "object": "chat.completion", "model": "m"}
_JUDGED = chat(json.dumps({"rationale": "clear", "helpfulness": 4, "quality": 4, "verdict": "A"}))
_ERROR = {"error": {"message": "no", "code": "bad", "type": "invalid_request_error", "param": None}}
_MODELS = {"data": [{"id": "m", "owned_by": "someone", "max_model_len": 4096}]}
_STATUSES = (200, 200, 200, 200, 200, 204, 206, 301, 400, 400, 401, 404, 408, 413, 418, 422, 429, 500, 503)
_HEADERS: tuple[dict[str, str], ...] = (
    {}, {}, {}, {"Content-Encoding": "gzip"}, {"Content-Encoding": "br"}, {"Content-Type": "text/html; charset=hex"},
    {"Retry-After": "nan"}, {"Retry-After": "-1"}, {"Location": "http://\u00ff/"}, {"Location": "//x:99999/"},
    {"X": "y" * 5000},
)  # fmt: skip


def server(rng: random.Random, run: Path, folder: Path) -> Case:
    """`sample` or `rank --judge` on a server that answers as no server should."""
    fake = FakeServer()
    judge = rng.random() < 0.3
    good = _JUDGED if judge else _RESPONSE
    if rng.random() < 0.3:
        fake.models = (rng.choice(_STATUSES), rng.choice(_HEADERS), raw(mutated(_MODELS, rng, 2), rng))
    if rng.random() < 0.2:
        fake.version = (200, {}, raw(mutated({"version": "1"}, rng), rng))

    def answer(path: str, body: Any, nth: int) -> tuple[int, dict[str, str], bytes]:
        status, headers = rng.choice(_STATUSES), rng.choice(_HEADERS)
        said = raw(mutated(good if status == 200 else _ERROR, rng, rng.choice([0, 1, 1, 2, 5])), rng)
        if headers.get("Content-Encoding") == "gzip" and rng.random() < 0.8:
            said = gzip.compress(said)
        return (0 if rng.random() < 0.03 else status), headers, said

    fake.answer = answer
    engine = ["--engine", "openai", "--base-url", fake.url, "--timeout", 5, "--retries", rng.choice([0, 0, 1])]
    engine += ["--concurrency", 1]  # so that the server's draws come in one order
    command = (
        ["rank", run, "--judge", "m", "--name", "j"]
        if judge
        else ["sample", run, "--model", "m", "-n", 2, "--name", "s"]
    )
    if not judge and rng.random() < 0.3:
        command += rng.choice([["--raw"], ["--logprobs"], ["--temperature", "0.5"], ["--top-p", "0.5"]])
    return Case("server", [*command, *engine], fake.close)


# Functions

_RAISED = (
    "ValueError('no')", "KeyboardInterrupt", "SystemExit(0)", "GeneratorExit", "StopIteration", "MemoryError",
    "Odd('x')",
    "type('E' * 5000, (Exception,), {})", "ValueError('\\ud83d\\x1b[2J')", "ExceptionGroup('g', [ValueError()])",
    "UnicodeDecodeError('x', b'', 0, 1, 'x')",
    "RecursionError", "BrokenPipeError", "ValueError('x' * 10**7)",
)  # fmt: skip
_RETURNED = (
    "1", "0.5", "True", "None", "'x'", "b'x'", "float('nan')", "float('inf')", "10**400", "-0.0", "1j", "[]", "{}",
    "()", "object()", "Odd",
    "Odd()", "{'score': 1, 'x': '\\ud83d'}", "{'score': '1'}", "{'score': float('nan')}", "{1: 2}",
    "{'score': 1, None: {1: {2, 3}}}",
    "{'score': 1, 'x': deep()}", "{'score': 1, 'x': 'x' * 10**7}", "deep()", "(x for x in [1])", "lambda: 1", "f",
    "r", "m", "...", "Lazy()",
    "{'score': Lazy()}", "{'score': 1, Lazy(): 1}", "{'score': 2, '\\x1b[31m': '\\u202e'}",
    "__import__('decimal').Decimal('sNaN')",
)  # fmt: skip
_DONE = (
    "pass", "print('\\x1b[2J', flush=True)", "import os; os._exit(3)", "import os; os.close(1); os.close(2)",
    "import sys; sys.exit('bye')",
    "import sys; sys.stdout = None", "import os; os.fork()", "import os; os.kill(os.getpid(), 9)", "m.clear()",
    "m[0]['content'] = 1",
    "import signal; signal.alarm(1)", "import threading; threading.Thread(target=print).start()",
    "import os; os.chdir('/')",
    "import ctypes; ctypes.string_at(0)", "import sys; sys.setrecursionlimit(50)", "import sys; sys.modules.clear()",
    "import gc; gc.disable()", "import os; os.environ.clear()", "import warnings; warnings.warn('w')",
    "import os; os.closerange(3, 50)",
)  # fmt: skip
_AROUND = (
    "", "", "", "", "", "import nowhere", "raise Odd('x')", "def broken(:", "\0", "x = 'é\\ud83d'",
    "import os; os._exit(5)", "exit()", "1 / 0",
    "del f", "f = 3", "f = Odd", "f = property(f)", "def __getattr__(n): raise OSError", "f.__signature__ = 1",
    "async def f(m, r): return 1",
    "f = type('F', (), {'__call__': lambda s, *a: 1})()", "import functools; f = functools.partial(f, 1, 2, 3)",
    "x = " + "(" * 500,
)  # fmt: skip
_PRELUDE = """
class Odd(BaseException):
    def __str__(self): raise OSError
    __repr__ = __str__
class Lazy:
    def __str__(self): raise Odd
    def __float__(self): raise Odd
    def __getattr__(self, name): raise Odd
def deep():
    found = []
    for _ in range(5000): found = [found]
    return found
"""


def function(rng: random.Random, run: Path, folder: Path) -> Case:
    """`rank --function`, `--verifier` or `--combine` with code that does what it likes."""
    last = f"raise {rng.choice(_RAISED)}" if rng.random() < 0.4 else f"return {rng.choice(_RETURNED)}"
    sometimes = f"if len(r) % {rng.choice([2, 3])}: {rng.choice(_DONE)}"
    body = "".join(f"    {line}\n" for line in [rng.choice([sometimes, rng.choice(_DONE)]), last])
    signature = rng.choice(["m, r", "m, r", "m, r", "*a", "m", "m, r, reference=None, metadata=None", "m, r, x", ""])
    names = "" if "r" in signature else "    r = m = ()\n"
    file = folder / "f.py"
    source = f"{_PRELUDE}\ndef f({signature}):\n{names}{body}\n{rng.choice(_AROUND)}\n"
    file.write_bytes(source.encode("utf-8", "surrogatepass"))
    how = rng.random()
    if how < 0.5:
        return Case("function", ["rank", run, "--function", f"{file}:f"])
    if how < 0.8:
        return Case("function", ["rank", run, "--verifier", f"{file}:f", "--time-limit", 2])
    return Case("function", ["rank", run, "--combine", f"{file}:f(scores, scores)", "--name", "c"])


# Files

_ROWS: tuple[dict[str, Any], ...] = (
    {"prompt": "Say it.", "chosen": "a", "rejected": "b"},
    {"prompt": "Say it.", "responses": ["a", "b"], "scores": [1, 2]},
    {"messages": [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "it"}]},
    {"chosen": [{"role": "user", "content": "x"}], "rejected": [{"role": "user", "content": "y"}]},
    {"instruction": "Do", "input": "this", "output": "done"},
    {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]},
    {"question": "2+2?", "reference": "4", "tags": ["math"], "split": "train", "metadata": {"a": 1}},
)  # fmt: skip
_YAML = (
    "sample: {model: m}", "sample: [", "sample: " + "[" * 5000, "a: 2020-13-45",
    "sample: {n: 9999999999999999999999}", "rank: {judge: &a [*a]}",
    "\ud83d: x", "!!python/object:os.system x", "sample: {temperature: .nan}", "1: 2", "- x",
    "sample: {model: 10000-01-01}", "? [a]\n: b",
    "a: &a [1]\nb: &b [*a,*a,*a]\nsample: {model: *b}", "sample:\n\t- x", "\0", "sample: {model: m, n: 1e400}",
    "kind: absolute", "--- \n--- ",
)  # fmt: skip


def file(rng: random.Random, run: Path, folder: Path) -> Case:
    """A command that reads a file which is not what its name says."""
    how = rng.random()
    if how < 0.6:
        return _data(rng, run, folder)
    path = folder / "x.yaml"
    path.write_bytes(rng.choice(_YAML).encode("utf-8", "surrogatepass"))
    uses = (
        ["sample", run, "-c", path, "--dry-run"],
        ["rank", run, "-c", path],
        ["rank", run, "--judge", "m", "--rubric", path],
        ["select", run, "--refusals", "drop", "--refusal-phrases", path],
        ["rank", run, "--verifier", f"json-schema:{path}"],
        ["rank", run, "--verifier", f"{path}"],
        ["sample", run, "--model", "m", "--preprompts", path, "--dry-run"],
        ["ingest", folder / "new", path],
        ["train", "sft", path, "--model", "m", "--out", folder / "out"],
    )
    return Case("file", list(rng.choice(uses)))


def _data(rng: random.Random, run: Path, folder: Path) -> Case:
    rows = [mutated(rng.choice(_ROWS), rng, rng.choice([0, 0, 1, 2])) for _ in range(rng.choice([1, 3, 20]))]
    kinds = ["jsonl", "jsonl", "json", "csv", "tsv", "parquet", "parquet", "arrow", "txt", "jsonl.gz"]
    path = folder / f"data.{rng.choice(kinds)}"
    content = b"\n".join(raw(row, rng) for row in rows)
    if path.suffix == ".json":
        content = raw(rng.choice([rows, {"data": rows}, {"data": rows, "rows": rows}, rows[0]]), rng)
    if path.suffix == ".gz" and rng.random() < 0.7:
        content = gzip.compress(content)[: rng.choice([None, 30])]
    if rng.random() < 0.1:
        content = rng.choice(
            [b"", b"\n", b"\xff\xfe{}", b"\xef\xbb\xbf", b"PAR1", b"PAR1" * 10, b"\x1f\x8b", b"\0" * 100]
        )
    path.write_bytes(content)
    if path.suffix == ".parquet" and rng.random() < 0.9:
        pq.write_table(_table(rng), path)
    if rng.random() < 0.2:
        path = _dataset(rng, folder, content)
    uses = (
        ["ingest", folder / "new", path],
        ["ingest", folder / "new", path, "--as", "candidates"],
        ["ingest", folder / "new", path, "--as", "candidates", "--score", "scores"],
        ["ingest", folder / "new", path, "--as", "comparisons"],
        ["ingest", folder / "new", path, "--on-bad-rows", "drop"],
        ["train", "dpo", path, "--model", run.parent / "policy", "--out", folder / "out", "--max-steps", 1],
        ["eval", "reward-model", f"{run.parent}/long.py:f", path],
    )
    return Case("file", list(rng.choice(uses)))


_COLUMNS: tuple[tuple[Any, list[Any]], ...] = (
    (pa.date32(), [10_000_000]), (pa.timestamp("us"), [1 << 62]), (pa.timestamp("ns", "UTC"), [1]),
    (pa.time64("us"), [86_400_000_000]), (pa.list_(pa.date32()), [[10_000_000]]), (pa.uint64(), [(1 << 64) - 1]),
    (pa.duration("s"), [1 << 60]), (pa.decimal128(38, 2), [None]), (pa.binary(), [b"\xff"]), (pa.null(), [None]),
    (pa.struct([("role", pa.string()), ("at", pa.date32())]), [{"role": "user", "at": 10_000_000}]),
    (pa.map_(pa.string(), pa.string()), [[("a", "b")]]), (pa.dictionary(pa.int8(), pa.string()), ["a"]),
    (pa.float32(), [float("nan")]), (pa.string(), ["x"]), (pa.bool_(), [True]),
)  # fmt: skip


def _table(rng: random.Random) -> pa.Table:
    """Columns that trainers do not write, under the names that they read."""
    names = rng.sample(["prompt", "chosen", "rejected", "messages", "responses", "scores", "label", "split", "id"], 4)
    columns = {name: pa.array(values, kind) for name in names for kind, values in [rng.choice(_COLUMNS)]}
    texts = {name: pa.array(["text"]) for name in rng.sample(["prompt", "chosen", "rejected"], rng.choice([1, 2, 3]))}
    return pa.table({**columns, **texts})


def _dataset(rng: random.Random, folder: Path, content: bytes) -> Path:
    """A folder that looks like one that `datasets` saved."""
    saved = folder / "saved"
    (saved / "train").mkdir(parents=True)
    state = {"_data_files": [{"filename": rng.choice(["data.arrow", "../../x", "/etc/passwd", "\0", ""])}]}
    (saved / "train" / "state.json").write_bytes(raw(mutated(state, rng, rng.choice([0, 1])), rng))
    (saved / "train" / "data.arrow").write_bytes(content)
    splits = {"splits": rng.choice([["train"], ["train", "../train"], "train", ["gone"]])}
    (saved / "dataset_dict.json").write_bytes(raw(mutated(splits, rng, rng.choice([0, 1])), rng))
    return saved if rng.random() < 0.7 else saved / "train"


# Folders

_READ = (
    ["status"], ["sql", "{}", "select count(*) from candidates"], ["sql"],
    ["select", "{}", "--method", "top-k", "--k", "2"], ["pair"],
    ["explain", "{}", "abc"], ["check", "run"], ["rank", "{}", "--combine", "scores + 0", "--name", "c"],
    ["export", "{}", "--to", "{}/exports/x"],
    ["curves"], ["eval", "policies"], ["pair", "{}", "--selector", "all", "--name", "p"],
    ["train", "dpo", "{}", "--model", "m", "--out", "{}/models/x"],
)  # fmt: skip


def _values(content: bytes) -> Any:
    """What a JSON file holds; nothing where it was changed before."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return {}


def run_folder(rng: random.Random, run: Path, folder: Path) -> Case:
    """A command on a run in which files were changed, cut, removed, or are folders."""
    files = sorted(path for path in run.rglob("*") if path.is_file())
    for _ in range(rng.choice([1, 1, 2, 4])):
        path = rng.choice(files)
        if not path.is_file():
            continue
        how = rng.random()
        content = path.read_bytes()
        if how < 0.4 and path.suffix != ".parquet":
            path.write_bytes(raw(mutated(_values(content), rng, rng.choice([1, 2])), rng))
        elif how < 0.6:
            path.write_bytes(content[: rng.randrange(len(content) + 1)])
        elif how < 0.7:
            path.write_bytes(rng.choice([b"", b"{}", b"null", DEEP.encode(), b"\xff" * 50]))
        elif how < 0.8:
            path.unlink()
        elif how < 0.9:
            path.unlink()
            path.mkdir()
        else:
            copy = path.with_name(rng.choice(["part-99999.parquet", "x", "_SUCCESS", "_spec.json", "_claims"]))
            if not copy.exists():
                shutil.copy(path, copy)
    command = list(rng.choice(_READ))
    if "{}" not in command:
        command.append("{}")
    return Case("folder", [str(word).replace("{}", str(run)) for word in command])


def template(rng: random.Random, run: Path, folder: Path) -> Case:
    """A command with a chat template that is none, or that does what it likes."""
    source = rng.choice((
        "{{ messages[0].content }}", "{% for m in messages %}{{ m.content", "{{ 1 / 0 }}", "{{ messages.x.y }}", "",
        "\0", "\ud83d", "{{ raise_exception('\x1b[2J') }}",
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "{{ ''.__class__.__mro__ }}", "{{ range(999999999) }}",
        "{% include 'x' %}",
        "{% for m in messages %}{{ m.role }}{{ m.content * 2 }}{% endfor %}", "{{ messages | tojson }}",
        "{{ strftime_now('%Y') }}", "{{ '" + "x" * 9999 + "' }}",
        "{{ bos_token * 1000 }}", "{% set x = namespace(y=messages) %}{{ x }}", "{% if messages %}{% endif %}",
        "{{ messages[-1].content[:1] }}",
    ))  # fmt: skip
    path = folder / "t.jinja"
    path.write_bytes(source.encode("utf-8", "surrogatepass"))
    policy = run.parent / "policy"
    uses = (
        ["sample", run, "--model", policy, "-n", 1, "--max-tokens", 2, "--name", "t", "--chat-template", path],
        ["sample", run, "--model", policy, "--chat-template", path, "--dry-run"],
        ["rank", run, "--mean-logprob", policy, "--chat-template", path],
    )
    return Case("folder", list(rng.choice(uses)))


KINDS: dict[str, Callable[[random.Random, Path, Path], Case]] = {
    "server": server,
    "function": function,
    "file": file,
    "run": run_folder,
    "template": template,
}
