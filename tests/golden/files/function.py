"""A scorer and a verifier of fixed text: its checksum is part of the golden identities in scorers.json."""


def length(messages, answer):
    """The length of the response in characters."""
    return len(answer)
