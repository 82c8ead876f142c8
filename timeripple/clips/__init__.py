"""Clips: loading a model, naming a method, generating, comparing, judging and writing what came of it."""
