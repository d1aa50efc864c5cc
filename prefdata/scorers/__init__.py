"""Scorers: reward models, language models, judges, rules and functions behind one protocol.

open.py    the registry: what each kind of scorer is, and what it makes
kinds.py   how each kind is opened, and what identifies it
"""
