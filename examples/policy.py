"""A policy: several candidates a round, judged by unit tests in a sandbox, with a repair round."""

import mechanex_jax as mx

mx.set_execution_mode("local")
mx.load()
policy = {
    "sampling": {"method": "top-p", "temperature": 0.6, "num_candidates": 4},
    "verifiers": {"enabled": ["unit_tests"], "code_unit_tests": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]},
    "optimization": {"retry_on_failure": 1},
}
result = mx.policy.run(
    "Write a Python function add(a, b) that returns the sum. Answer with code only.",
    policy,
    chat=True,
    max_new_tokens=96,
    seed=1,
    include_trace=True,
)
print(result["output"])
print("accepted:", result["accepted"], "score:", result["score"])
print("candidates:", len(result["trace"]["candidates"]))
