"""Structured extraction: the answer is JSON of a pydantic model, whatever the model would like to write."""

from pydantic import BaseModel, ConfigDict, Field

import mechanex_jax as mx


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=150)


mx.set_execution_mode("local")
mx.load()
text = mx.generation.generate(
    "Ada Lovelace is 36 years old. Give her name and age as JSON.", chat=True, json_schema=Person, temperature=0, max_tokens=48
)
print(text)
print(repr(Person.model_validate_json(text)))
