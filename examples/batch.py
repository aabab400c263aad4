"""One batch whose rows differ in method, parameters, schema, length and steering vector; nothing compiles per row."""

import numpy as np

import mechanex_jax as mx

mx.set_execution_mode("local")
loaded = mx.load()
city = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
city["additionalProperties"] = False
direction = np.random.default_rng(0).normal(size=loaded.model.spec.width).astype(np.float32)
texts = mx.generation.generate_batch(
    ["The sea is", "A city as JSON: ", "Water boils at"],
    sampling_method=["top-p", "guided-generation", "greedy"],
    temperature=[0.8, 1.0, 0.7],
    json_schema=[None, city, None],
    steering_vector=[None, None, {12: direction}],
    steering_strength=[0, 0, 0.5],
    max_tokens=[16, 24, 8],
    seed=1,
)
for text in texts:
    print(repr(text))
