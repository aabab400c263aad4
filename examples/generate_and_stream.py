"""Generate a text, stream another, and ask a question with the chat template."""

import mechanex_jax as mx

mx.set_execution_mode("local")
mx.load()
print(mx.generation.generate("The three primary colours are", sampling_method="greedy", max_tokens=12))
for piece in mx.generation.stream("Once upon a time", sampling_method="min-p", max_tokens=24, seed=1):
    print(piece, end="", flush=True)
print()
print(mx.generation.generate("What is the capital of France?", chat=True, sampling_method="greedy", max_tokens=24))
