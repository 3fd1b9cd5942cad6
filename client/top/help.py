"""The help page."""

from __future__ import annotations

from typing import Final

HELP: Final = """\
  ↑ ↓ j k     select a node (or a request); page up, page down, home, end
  tab         move in the list of requests instead, and back
  enter       open the node, or the story of the request; esc leads back
  x           drain the selected node, after a question
  s r         sort nodes by name, load, health, tokens, memory; reverse
  /           filter nodes, requests and events by a word; esc clears it
  d           one row for each device, or one for each node
  e m         all events; all models
  space p     pause: the picture stands, the fleet goes on
  + - ← →     in a recording: faster, slower, ten seconds back or ahead
  q ctrl-c    leave; nothing in the fleet changes by it

  healthy     heard of lately, and its model is loaded: it gets work
  loading     has joined, and makes its model ready
  suspect     silent for over a heartbeat, or standing still: no new work
  lost        gone, or silent for too long: its work went on elsewhere
  moved       requests given to another node; resumed: at their next token
  tok/s       between the last two heartbeats; batch: in the engine at the last
  kv          how full the memory for keys and values is
  hits        share of the prompts that was found there, and not computed
  p50 p99     of what ended in the last minute; of models, since the start
"""
