"""Files of prompts and texts, and a session without a model that answers them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

from mechanex_jax import cli
from mechanex_jax.cli.job import Job
from mechanex_jax.engine.config import per_row
from mechanex_jax.engine.request import Completion
from mechanex_jax.steering import Steering

COMMAND = [sys.executable, "-m", "mechanex_jax_command"]
ROOT = Path(cli.__file__).parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


class Machine:
    """A session without a model: a row's text tells its prompt and seed. Remembers its calls; may break down at one."""

    def __init__(self, breaks_at: int | None = None, context: int = 100):
        self.calls: list[dict] = []
        self.breaks_at = breaks_at
        self.context = context
        self.generation = self
        self.steering = Steering(self)

    def local_model(self, name):
        tokenizer = SimpleNamespace(encode=lambda text, **options: list(text), encode_chat=lambda prompt: [0], bos_id=0)
        spec = SimpleNamespace(context=self.context, vocabulary=9, width=4, layers=2)
        return SimpleNamespace(name="machine", tokenizer=tokenizer, model=SimpleNamespace(spec=spec))

    def generate_batch(self, prompts, *, seed, batch_size, details, **arguments):
        if len(self.calls) == self.breaks_at:
            raise KeyboardInterrupt
        self.calls.append({"prompts": prompts, "seeds": seed, "configs": per_row(arguments, len(prompts))})
        return [
            Completion(f"{prompt}\u2028{key} \N{SNOWMAN}", (1, 2), (0.0, 0.0), "length")
            for prompt, key in zip(prompts, seed, strict=True)
        ]


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def work(source, target, machine=None, **options):
    with Job(source, target, **{"batch_size": 4, **options}) as job:
        job.run(machine or Machine())
        job.finish()
