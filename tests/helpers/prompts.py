"""Prompts by positions alone."""

from collections.abc import Mapping

from goca.prompts.prompt import Prompt


def plain_prompt(class_tokens: Mapping[int, tuple[int, ...]], text_tokens: int = 77) -> Prompt:
    """A prompt whose classes stand at these positions."""
    return Prompt("", tuple(str(i) for i in range(text_tokens)), dict(class_tokens))
