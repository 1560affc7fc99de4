"""From images and words to prompts: captions, class matching and exact token alignment."""

from goca.prompts.prompt import Entity, Prompt, TextSegment
from goca.prompts.sources import Captions, Classes, Folder, PromptSource, Published, Vocabulary, from_names, from_text

__all__ = [
    "Captions",
    "Classes",
    "Entity",
    "Folder",
    "Prompt",
    "PromptSource",
    "Published",
    "TextSegment",
    "Vocabulary",
    "from_names",
    "from_text",
]
