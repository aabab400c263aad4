"""Make a steering vector from contrastive answers, judge it on other answers, and apply it."""

import mechanex_jax as mx

mx.set_execution_mode("local")
mx.load()
prompts = ["How was the film?", "And the food?", "How was the trip?", "How is your room?"]
positive = [" Wonderful, I loved it!", " Delicious, truly great!", " Beautiful, what a joy!", " Lovely and bright!"]
negative = [" Terrible, I hated it.", " Awful, truly bad.", " Horrible, what a pain.", " Dark and ugly."]
id = mx.steering.generate_vectors(prompts, positive, negative, method="caa", name="joy")
measured = mx.steering.evaluate(
    id,
    [" It was great."],
    [" It was bad."],
    prompts=["How was the concert?"],
    strengths=(0, 1.5),
    unrelated=["Water boils at 100 degrees Celsius at sea level, and at a lower temperature on a mountain."],
)
print(measured.table())
for strength in (0.0, 1.5):
    text = mx.generation.generate(
        "My week was", steering_vector=id if strength else None, steering_strength=strength, temperature=0, max_tokens=20
    )
    print(f"{strength}: {text!r}")
mx.steering.delete(id)
