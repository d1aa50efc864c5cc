"""TODO vllm."""
