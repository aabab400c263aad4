"""What passes, what fails and why; and that no way of ending early, printing or patching passes for success."""

from __future__ import annotations

import inspect
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from processes import descendants, descriptors

from mechanex_jax.errors import ArgumentError, NotLocalError
from mechanex_jax.policy.sandbox import containment
from mechanex_jax.policy.sandbox import runner as sandbox
from mechanex_jax.policy.sandbox.code_blocks import extract_code
from mechanex_jax.policy.sandbox.runner import Limits, TestResult, UnitTestRunner, check_tests, run_unit_tests

ADD = "def add(a, b):\n    return a + b\n"


def run(code, *tests, timeout_ms=10_000):
    return run_unit_tests(code, list(tests), timeout_ms)


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        (ADD, ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'"]),
        (ADD, []),
        ("", ["assert 1"]),
        (ADD, ["x = add(1, 1)", "assert x == 2"]),  # one namespace
        ("def grüße(ñ): return f'{ñ}, 世界 🌍'", ["assert grüße('hé') == 'hé, 世界 🌍'"]),
        ("from __future__ import annotations\ndef f(x: Nowhere): return x", ["assert f(1) == 1"]),
        (
            "from dataclasses import dataclass\n@dataclass\nclass P:\n  x: 'int' = 1",
            ["import pickle; assert pickle.loads(pickle.dumps(P())) == P()"],
        ),
        ("if __name__ == '__main__': raise SystemExit(input())", ["assert __name__ == 'solution'"]),
        ("import ssl, sqlite3, asyncio, decimal, statistics, zoneinfo, random, ctypes", ["assert random.random() < 1"]),
        ("from concurrent.futures import ThreadPoolExecutor as T", ["with T(4) as p: assert list(p.map(abs, [-1])) == [1]"]),
        (
            "import multiprocessing as m, time",
            ["with m.get_context('fork').Pool(2) as p: assert p.map(abs, [-1, 2]) == [1, 2]"],
        ),
        ("import os, time\nchild = os.fork()\nif child: os.waitpid(child, 0)", ["assert os.getpid()"]),  # both come to the end
        ("import sys", ["assert sys.stdin.read() == ''", "print('x'); sys.stderr.write('y')"]),
        ("import signal", ["assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL"]),
    ],
)
def test_right_code_passes(code, tests):
    result = run(code, *tests)
    assert (result.passed, result.reason, result.timed_out) == (True, "", False)


@pytest.mark.parametrize(
    ("code", "tests", "reason"),
    [
        (ADD, ["assert add(1, 2) == 3", "assert add(1, 2) == 4"], "test 2 of 2 (assert add(1, 2) == 4): AssertionError"),
        (ADD, ["assert add(1, 2) == 4, 'sum'"], "test 1 of 1 (assert add(1, 2) == 4, 'sum'): AssertionError: sum"),
        ("def f(x):\n  y = 1\n  return x / 0", ["f(1)"], "test 1 of 1 (f(1)): ZeroDivisionError: division by zero (line 3)"),
        ("def f(", ["f()"], "the code: SyntaxError: '(' was never closed (line 1)"),
        ("x = 1\nnope", [], "the code: NameError: name 'nope' is not defined (line 2)"),
        ("a\0b", [], "the code: SyntaxError: source code string cannot contain null bytes"),
        ("raise KeyboardInterrupt", [], "the code: KeyboardInterrupt (line 1)"),
        ("raise ValueError('á\\n  b')", [], "the code: ValueError: á b (line 1)"),
        ("raise ValueError(object())", [], "the code: ValueError: <object object at 0x...> (line 1)"),
        ("import numpy", [], "the code: ModuleNotFoundError: No module named 'numpy' (line 1)"),
        ("import mechanex_jax", [], "the code: ModuleNotFoundError: No module named 'mechanex_jax' (line 1)"),
        ("import ctypes\nctypes.string_at(0)", [], "the interpreter was killed by SIGSEGV"),
    ],
)
def test_a_failure_says_what_failed(code, tests, reason):
    result = run(code, *tests)
    assert not result.passed and not result.timed_out and result.reason.startswith(reason), result.reason


def test_a_reason_never_floods():
    for code in ("raise ValueError('x' * 10**7)", "class " + "E" * 5000 + "(Exception): pass\nraise " + "E" * 5000):
        assert 0 < len(run(code).reason) <= 300
    assert len(run("", "assert 0, '" + "y" * 9000 + "'").reason) <= 300


def test_text_that_is_not_unicode_is_no_more_than_a_failure():
    assert "UnicodeEncodeError" in run("x = '\ud800'").reason
    assert not run("raise ValueError('\\ud800')").passed


WRONG = ["assert answer() == 42"]
EVERYWHERE = """
import os
for descriptor in range(1, 64):
    for text in (b'+', b'pass', b'.exit 0', b'ok\\n' * 30):
        try: os.write(descriptor, text)
        except OSError: pass
"""


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "quit()",
        "def answer():\n  import sys; sys.exit(0)",
        "def answer():\n  import os; os._exit(0)",
        "import os, signal\ndef answer(): os.kill(os.getpid(), signal.SIGKILL); os.abort()",
        "import os, threading; threading.Timer(0.05, os._exit, [0]).start()\ndef answer():\n  while True: pass",
        "import os\nif os.fork(): os._exit(0)",
        "import os\nif os.fork(): os.wait(); os._exit(0)",
        "import os\nchild = os.fork()\nif child: os.waitpid(child, 0)\ndef answer(): return 42 if child == 0 else 41",
        "import os\nos.execv('/bin/true', ['true'])",
        "print('passed'); print('OK')\nimport atexit, os; atexit.register(os._exit, 0)",
        "import builtins\nbuiltins.AssertionError = type('E', (Exception,), {})\ndef answer(): return 1",
        "import builtins\nbuiltins.exec = builtins.compile = builtins.print = lambda *a, **k: None\ndef answer(): return 1",
        "import builtins\nbuiltins.enumerate = builtins.zip = builtins.iter = lambda *a: []\ndef answer(): return 1",
        "import builtins\nbuiltins.BaseException = builtins.Exception = ArithmeticError\ndef answer(): return 1",
        "import os, sys\nos.write = os._exit = sys.exit = lambda *a: 1\ndef answer(): return 1",
        "import sys\nsys.excepthook = lambda *a: None\nsys.settrace(lambda *a: None)\ndef answer(): return 1",
        "import __main__\n__main__.run = __main__.describe = __main__.keep = lambda *a: None\ndef answer(): return 1",
        "class E(BaseException):\n  def __str__(self): import os; os._exit(0)\ndef answer(): raise E",
        "import gc, sys\nsys.setrecursionlimit(10**8)\ndef answer(): return answer()",
        EVERYWHERE + "os._exit(0)",
        EVERYWHERE + "def answer(): return 42",  # what would pass does not, once it has meddled
    ],
)
def test_fake_success_fails(code):
    result = run(code, *WRONG, timeout_ms=3000)
    assert not result.passed and result.reason


def test_several_threads_run_at_once_without_mixing():
    cases = [(i, i % 3 == 0) for i in range(18)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda c: run(f"x = {c[0]}", f"assert x == {c[0] if c[1] else -1}, x"), cases))
    for (i, right), result in zip(cases, results, strict=True):
        assert result.passed == right and (right or result.reason.endswith(f"AssertionError: {i}"))


@pytest.mark.slow
def test_hundreds_of_runs_leak_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run("pass")
    before = descendants(os.getpid()), descriptors(), os.listdir(tmp_path)
    for i in range(200):
        assert run(f"x = {i}; open('file', 'w').write('x')", f"assert x % 2 == {i % 2}").passed
    assert (descendants(os.getpid()), descriptors(), os.listdir(tmp_path)) == before and before[2] == []


def test_a_result_repeats():
    code = "words = list({'alpha', 'beta', 'gamma', 'delta'})"
    assert len({run(code, "assert 0, words").reason for _ in range(4)}) == 1


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("Here:\n```python\nx = 1\n```\nand\n```python\ny\n```", "x = 1"),
        ("```\nshell\n```\n```Python\nx = 1\n```", "x = 1"),
        ("```py\nx = 1\n\n\ny = 2\n```", "x = 1\n\n\ny = 2"),
        ("```bash\nls\n```", "ls"),
        ("```\nx = 1\n```", "x = 1"),
        ("Sure.\n```python\nx = 1\nif x:", "x = 1\nif x:"),
        ("1. So\n   ```python\n   if x:\n       y\n   ```", "if x:\n    y"),
        ("~~~python title='a'\nx = '```'\n~~~", "x = '```'"),
        ("````python\ndef f():\n    '''\n    ```\n    '''\n````", "def f():\n    '''\n    ```\n    '''"),
        ("```{.python}\nx\n```", "x"),
        ("```python\n```\n```python\nx\n```", "x"),
        ("    x = 1\n    y = 2\n", "x = 1\ny = 2"),
        ("use `x = 1`", "use `x = 1`"),
        ("```python\r\nx = 1\r\n```", "x = 1"),
        ("", ""),
    ],
)
def test_code_is_found_in_an_answer(answer, code):
    assert extract_code(answer) == code


def test_another_language_is_found_by_its_name():
    answer = "```python\nx\n```\n```sql\nselect 1\n```"
    assert (extract_code(answer, "sql"), extract_code(answer, "rust")) == ("select 1", "x")


@pytest.mark.parametrize(
    ("tests", "words"),
    [
        ("assert 1", ["code_unit_tests", "a list of Python snippets"]),
        ({"assert 1"}, ["a list of Python snippets"]),
        (["assert 1", 3], ["code_unit_tests[1]", "got 3", "a string"]),
        (["assert 1", "assert ("], ["code_unit_tests[1]", "'assert ('", "valid Python", "never closed", "line 1"]),
        (["return 1"], ["outside function"]),
        (["a\0b"], ["valid Python"]),
    ],
)
def test_snippets_that_are_not_python_are_named(tests, words):
    with pytest.raises(ArgumentError) as caught:
        check_tests(tests)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_wrong_arguments_are_refused():
    wrong: list[Any] = [(1, []), (ADD, "x"), (ADD, ["("]), (ADD, [], 0), (ADD, [], 1.5)]
    for arguments in wrong:
        with pytest.raises(ArgumentError):
            run_unit_tests(*arguments)


def test_a_system_without_fork_says_so(monkeypatch):
    monkeypatch.delattr(os, "fork")
    with pytest.raises(NotLocalError, match="runner of your own"):
        run_unit_tests(ADD, [])


def test_a_runner_of_ones_own_has_the_same_shape():
    def mine(code: str, tests, timeout_ms: int) -> TestResult:
        return TestResult(passed=False, reason="elsewhere")

    for runner in (mine, run_unit_tests):
        accepted: UnitTestRunner = runner
        assert list(inspect.signature(accepted).parameters)[:3] == ["code", "tests", "timeout_ms"]
    assert mine("", [], 1) == TestResult(False, "elsewhere", False, ())


def test_limits_are_the_callers_to_set():
    tight = Limits(memory_mib=100, file_mib=1)
    assert "MemoryError" in run_unit_tests("x = bytearray(100 << 20)", [], limits=tight).reason
    assert "too large" in run_unit_tests("open('f', 'wb').write(bytes(2 << 20))", [], limits=tight).reason


def test_the_docstring_names_all_that_may_be_uncontained():
    names = [value for name, value in vars(containment).items() if name.isupper() and name[0] != "_" and isinstance(value, str)]
    assert len(names) == 10
    assert all(f"``{name}``" in " ".join((sandbox.__doc__ or "").split()) for name in names)
