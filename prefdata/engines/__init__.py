"""Engines that generate text: transformers, vLLM, any OpenAI-compatible server."""
