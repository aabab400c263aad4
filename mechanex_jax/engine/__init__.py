"""Strings and arrays: arguments to requests, requests to batches, batches to texts."""
