"""From images and words to prompts: captions, class matching and exact token alignment."""

from goca.prompts.prompt import Entity, Prompt, TextSegment
from goca.prompts.sources import Captions, Classes, Folder, PromptSource, Published, Vocabulary, from_names, from_text
from goca.prompts.templates import Concepts, Template, Unprompted

__all__ = [
    "Captions",
    "Classes",
    "Concepts",
    "Entity",
    "Folder",
    "Prompt",
    "PromptSource",
    "Published",
    "Template",
    "TextSegment",
    "Unprompted",
    "Vocabulary",
    "from_names",
    "from_text",
]
