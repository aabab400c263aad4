"""Byte automata: characters, expressions, finite automata, and pushdown automata that call each other."""
