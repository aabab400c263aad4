"""A researcher's own transform and edit in one jitted loop, and a capture of activations."""

import jax
import jax.numpy as jnp

import mechanex_jax as mx


def soft_cap(logits, cap):  # one row, pure; at module level, because it is part of the compile key
    return cap * jnp.tanh(logits / cap)


mx.set_execution_mode("local")
loaded = mx.load()
transform = mx.transforms.chain(mx.transforms.stateless(soft_cap, 30.0), mx.transforms.temperature([0.0, 0.7]))
edit = mx.edits.add(jnp.ones(loaded.model.spec.width), layer=12, strength=[0.0, 0.5])  # row 0 unsteered, row 1 steered
ids = loaded.tokenizer.encode("The sea is")
out = mx.loops.decode(loaded.model, [ids, ids], [len(ids)] * 2, transform, edits=edit, key=jax.random.key(0), max_new_tokens=12)
for row, length in zip(out.tokens, out.lengths, strict=True):
    print(repr(loaded.tokenizer.decode(row[:length])))

seen = mx.forward(loaded, ids, capture=("resid_pre", "mlp_out"))
print("logits", seen.logits.shape)
for site, activations in seen.activations.items():
    print(site, activations.shape)
