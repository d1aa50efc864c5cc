"""What generates text: transformers, vLLM, any OpenAI-compatible server."""
