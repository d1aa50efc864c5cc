"""Objectives: every loss by command and name, with its equation, defaults and source.

`registry` and `catalog` list the losses and need no torch; the losses are pure functions of log-probabilities
(`values.Policy`) or scores (`values.Scored`), one module per family; `objective` builds from a spec what the loop runs.
"""
