"""Saved policies and published presets, each as one JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mechanex_jax.errors import expected
from mechanex_jax.policy import validate
from mechanex_jax.policy.controls import Policy
from mechanex_jax.policy.presets import PolicyDict
from mechanex_jax.storage.json_store import JsonStore
from mechanex_jax.storage.json_values import plain


class SavedPolicies:
    """Policies by id, and presets to be cloned.

    Args:
      store: where policies are kept; None is the user's data folder.
      presets: where published presets are kept; None likewise.
    """

    def __init__(self, store: JsonStore | None = None, presets: JsonStore | None = None):
        self.store = store or JsonStore("policies", "policy", "pol_")
        self.presets = presets or JsonStore("policy_presets", "preset", "preset_")

    def save(self, policy: Mapping[str, object]) -> str:
        """Save a policy under its `id`, replacing what was there, or under a new one; returns the id.

        Raises:
          ArgumentError: what `run` would refuse in it.
        """
        checked = validate.read(policy)
        return self.store.save(self._record(checked), checked.id)

    def get(self, policy_id: str) -> PolicyDict:
        """Return a saved policy as it was given, its id included.

        Raises:
          ArgumentError: there is none; the message lists those there are.
          StoreError: its file is corrupt; it stays where it is.
        """
        return self.store.get(policy_id)

    def list(self) -> list[PolicyDict]:
        """Return all saved policies, oldest first. A corrupt file is warned of by name."""
        return self.store.list()

    def delete(self, policy_id: str) -> None:
        """Delete a saved policy.

        Raises:
          ArgumentError: there is none.
        """
        self.store.delete(policy_id)

    def publish_preset(
        self,
        name: str,
        policy: Mapping[str, object],
        visibility: str = "private",
        tags: Sequence[str] | None = None,
        description: str | None = None,
    ) -> str:
        """Save a policy as a preset of this user's, to be cloned; returns the preset's id.

        Args:
          name: of the preset, not empty.
          policy: as for `run`.
          visibility: "private" or "public".
          tags: words to find it by; one string is one tag.
          description: for readers.

        Raises:
          ArgumentError: a bad policy, name or visibility.
        """
        if not isinstance(name, str) or not name:
            raise expected("name", name, "a non-empty string")
        if visibility not in ("private", "public"):
            raise expected("visibility", visibility, "private or public")
        tag_list = [tags] if isinstance(tags, str) else [*(tags or ())]
        record = {"name": name, "visibility": visibility, "tags": tag_list, "description": description}
        return self.presets.save({**record, "policy": self._record(validate.read(policy))})

    def list_presets(self, include_public: bool = True) -> list[PolicyDict]:
        """Return published presets, oldest first; without `include_public` the private ones alone."""
        return [preset for preset in self.presets.list() if include_public or preset["visibility"] == "private"]

    def clone_preset(self, preset_id: str) -> str:
        """Save a preset's policy as one of the user's own; returns the new policy's id.

        Raises:
          ArgumentError: there is no such preset.
        """
        policy = {name: value for name, value in self.presets.get(preset_id)["policy"].items() if name != "id"}
        return self.save(policy)

    @staticmethod
    def _record(policy: Policy) -> PolicyDict:
        """The policy as it was given, in values that JSON can hold: what was left out stays so."""
        record = dict(policy.given)
        if policy.constraints.json_schema is not None:  # whatever form it was given in
            record["constraints"] = {**record["constraints"], "json_schema": policy.constraints.json_schema}
        return plain("policy", record)
