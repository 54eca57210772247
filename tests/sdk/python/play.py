"""Plays one scenario: play.py NAME. See stage.py for how it talks to the test."""

import sys

import basics
import recovery
import stage
import tokens

name = sys.argv[1]
found = [getattr(module, name) for module in (basics, recovery, tokens) if hasattr(module, name)]
if len(found) != 1:
    raise SystemExit(f"there is no scenario {name}")
stage.play(found[0])
