"""Captions from any endpoint that speaks OpenAI's chat completions protocol."""

from __future__ import annotations

import base64
import io
import os
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from goca.errors import ConfigError, DataError, ModelError, require
from goca.prompts.answers import Answer, Status
from goca.prompts.asked import Asked

if TYPE_CHECKING:
    from openai import OpenAI as Client
    from openai.types.chat import ChatCompletion


class Nouns(BaseModel):
    """The structured answer: nouns, or groups in parentheses, of the foreground and of the background."""

    model_config = ConfigDict(extra="forbid")

    foreground: list[str]
    background: list[str]

    @property
    def caption(self) -> str:
        return ", ".join(noun for entry in (*self.foreground, *self.background) if (noun := entry.strip(" ,.")))


# ConfigError instead of ValueError: pydantic would add the value to its message, and the value may be a key in the wrong place.
def _plain_url(url: str) -> str:
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname or address.username or address.query:
        raise ConfigError('prompts.base_url must look like "https://host/v1", without user, key or query in it')
    return url


def _variable_name(name: str) -> str:
    if not name.isidentifier():
        raise ConfigError("prompts.key_variable is the name of an environment variable, such as OPENAI_API_KEY, not the key")
    return name


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class OpenAI(Asked):
    """An endpoint that speaks OpenAI's protocol, local servers included; images are sent as JPEG data URLs.

    Args:
        base_url: the endpoint, up to and including its version ("https://api.openai.com/v1").
        key_variable: name of the environment variable that holds the key, null for servers without one. The key itself appears
            in no config, log, message or file.
        structured: ask for JSON of a fixed schema; false for servers without structured output, whose text is then the caption.
        retries: attempts after the first for rate limits, server errors and lost connections, with growing pauses.
        timeout: seconds until an attempt counts as failed.
        max_side: larger images are scaled down to it before they are sent (px).
        detail: how closely the model looks, and charges.
        input_price, output_price: per million tokens, in any currency; 0 leaves the cost out of the summary.
        options: further fields of the request's body, such as temperature.
    """

    base_url: Annotated[str, AfterValidator(_plain_url)]
    key_variable: Annotated[str, AfterValidator(_variable_name)] | None = "OPENAI_API_KEY"
    structured: bool = True
    retries: NonNegativeInt = 6
    timeout: PositiveFloat = 120.0
    max_side: PositiveInt = 1024
    detail: Literal["auto", "low", "high"] = "auto"
    input_price: NonNegativeFloat = 0.0
    output_price: NonNegativeFloat = 0.0
    options: dict[str, Any] = Field(default_factory=dict)

    def is_settled(self, status: Status) -> bool:
        """What was not JSON may well be a caption in plain text."""
        return super().is_settled(status) and (self.structured or status != "malformed")

    def load(self) -> None:
        require("openai", "openai", "captions", "prompts=openai")
        if self.key_variable and not self._key:
            raise ConfigError(f"the environment variable {self.key_variable} (prompts.key_variable) holds no key")

    def usage(self) -> dict[str, float]:
        counts = super().usage()
        cost = (counts["input_tokens"] * self.input_price + counts["output_tokens"] * self.output_price) / 1e6
        return counts | ({"cost": round(cost, 4)} if cost else {})

    def ask(self, image: np.ndarray, request: str) -> Answer:
        content = [
            {"type": "text", "text": request},
            {"type": "image_url", "image_url": {"url": data_url(image, self.max_side), "detail": self.detail}},
        ]
        body: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "extra_body": self.options}
        if self.structured:
            schema = {"name": "nouns", "strict": True, "schema": Nouns.model_json_schema()}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return self._answer(self._complete(body))

    def _complete(self, body: dict[str, Any]) -> ChatCompletion:
        """One completion, retried by the client.

        Raises:
            DataError, ConfigError, ModelError: as `ask`.
        """
        import openai

        try:
            completion = self._client.chat.completions.create(model=self.model, **body)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            where = f"the key in {self.key_variable}" if self.key_variable else "a request without a key (prompts.key_variable)"
            raise ConfigError(f"{self.base_url} does not accept {where}: {self._message(error)}") from None
        except openai.NotFoundError as error:
            raise ConfigError(f"{self.base_url} does not know prompts.model={self.model}: {self._message(error)}") from None
        except openai.APITimeoutError:
            raise DataError(f"no answer within {self.timeout:g} s, {self.retries + 1} times (prompts.timeout)") from None
        except openai.APIConnectionError as error:
            reason = self._message(error.__cause__ or error)
            raise ModelError(
                f"cannot reach {self.base_url}: {reason}; answers so far are kept, the same command continues"
            ) from None
        except openai.RateLimitError as error:
            if error.code == "insufficient_quota":
                raise ModelError(f"{self.base_url}: {self._message(error)}; the same command continues later") from None
            raise DataError(self._message(error)) from None
        except (openai.APIError, ValueError) as error:  # ValueError: a body that is not JSON
            raise DataError(self._message(error)) from None
        if not getattr(completion, "choices", None):
            raise DataError(f"{self.base_url} answered with something else than a chat completion")
        return completion

    def _answer(self, completion: ChatCompletion) -> Answer:
        choice, usage = completion.choices[0], completion.usage
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        text = choice.message.content or ""
        if choice.message.refusal or choice.finish_reason == "content_filter":
            return Answer(None, "refused", choice.message.refusal or "content filter", *tokens)
        if not self.structured or not text.strip():
            return Answer.of_text(text, *tokens)
        try:
            caption = Nouns.model_validate_json(text).caption
        except ValidationError:
            return Answer(None, "malformed", text, *tokens)
        return Answer(caption or None, "ok" if caption else "empty", "", *tokens)

    @cached_property
    def _client(self) -> Client:
        import openai

        # The client insists on a key; a server without one ignores it.
        return openai.OpenAI(
            base_url=self.base_url, api_key=self._key or "none", max_retries=self.retries, timeout=self.timeout
        )

    @property
    def _key(self) -> str:
        return os.environ.get(self.key_variable, "").strip() if self.key_variable else ""

    def _message(self, error: BaseException) -> str:
        """An error's text, short, and without the key should the endpoint repeat it."""
        text = str(error).replace(self._key, "***") if self._key else str(error)
        return text[:500] or type(error).__name__


def data_url(image: np.ndarray, max_side: int) -> str:
    """An (H, W, 3) uint8 image as JPEG in a data URL, scaled down to `max_side` px where it is larger."""
    picture = Image.fromarray(image)
    picture.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
