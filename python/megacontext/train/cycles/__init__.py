"""Gists, lens and a light LoRA learned in turns, each through what the others can do by then."""
