"""Objectives: every loss by command and name, with its equation, defaults and source.

`registry` and `catalog` say what there is and need no torch; the losses are pure functions of log-probabilities
(`values.Policy`) or scores (`values.Scored`) in one module a family; `objective` makes what the loop runs from a spec.
"""
