"""Fields that chat and completion requests share, and what they say about an answer."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from compressor.serving.api_errors import ApiError, bad_request, unsupported

Text = Annotated[str, StringConstraints(strict=True)]
Integer = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
LARGEST_INTEGER = 1 << 53


FieldsT = TypeVar("FieldsT", bound="Fields")


class Fields(BaseModel):
    """A part of a request; unknown fields are kept apart, to be counted."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @property
    def unknown(self) -> frozenset[str]:
        """Names of the fields that this server does not know, nested ones included."""
        names = set(self.model_extra or ())
        for name in type(self).model_fields:
            value = getattr(self, name)
            for part in value if isinstance(value, list | tuple) else (value,):
                if isinstance(part, Fields):
                    names |= {f"{name}.{inner}" for inner in part.unknown}
        return frozenset(names)


class StreamOptions(Fields):
    """Options of a stream."""

    include_usage: Flag | None = None


class JsonSchema(Fields):
    """A named schema that the answer follows."""

    name: Text | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: Flag | None = None
    description: Text | None = None


class ResponseFormat(Fields):
    """The form of the answer: text, any JSON object, or JSON of a schema."""

    type: Text
    json_schema: JsonSchema | None = None


class StructuredOutputs(Fields):
    """The form of the answer, as vLLM takes it: one of these."""

    json_: Annotated[dict[str, Any] | Text | None, Field(alias="json")] = None
    regex: Text | None = None
    choice: list[Text] | None = None
    grammar: Text | None = None
    """A grammar of Lark."""


class GenerationFields(Fields):
    """What chat and completion requests share."""

    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        "store": (False,),
        "best_of": (1,),
        "use_beam_search": (False,),
        "prompt_logprobs": (),
        "add_generation_prompt": (True,),
        "continue_final_message": (False,),
    }
    """Known fields that are not supported, with the values that change nothing."""

    model: Text | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[Integer | None, Field(ge=1, le=LARGEST_INTEGER)] = None
    temperature: Annotated[Number | None, Field(ge=0, le=2)] = None
    top_p: Annotated[Number | None, Field(ge=0, le=1)] = None
    top_k: Annotated[Integer | None, Field(ge=-1, le=LARGEST_INTEGER)] = None
    min_p: Annotated[Number | None, Field(ge=0, le=1)] = None
    frequency_penalty: Annotated[Number | None, Field(ge=-2, le=2)] = None
    presence_penalty: Annotated[Number | None, Field(ge=-2, le=2)] = None
    repetition_penalty: Annotated[Number | None, Field(gt=0, le=100)] = None
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[Integer | None, Field(ge=-(1 << 63), lt=1 << 64)] = None
    stop: Text | list[Text] | None = None
    stop_token_ids: list[Annotated[Integer, Field(ge=0, le=LARGEST_INTEGER)]] | None = None
    ignore_eos: Flag | None = None
    min_tokens: Annotated[Integer | None, Field(ge=0, le=LARGEST_INTEGER)] = None
    skip_special_tokens: Flag | None = None
    n: Annotated[Integer | None, Field(ge=1, le=LARGEST_INTEGER)] = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | Text | None = None
    guided_regex: Text | None = None
    guided_choice: list[Text] | None = None
    guided_grammar: Text | None = None
    user: Text | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The texts that end the answer; empty ones are left out."""
        texts = [self.stop] if isinstance(self.stop, str) else self.stop or ()
        return tuple(text for text in texts if text)

    @property
    def includes_usage(self) -> bool:
        """True if a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @classmethod
    def read(cls, value: dict[str, Any]) -> Self:
        """Return the request of a JSON object.

        Raises:
            ApiError: 400, which names the field at fault.
        """
        fields = read_fields(cls, value)
        for name, neutral in cls.refused.items():
            given = value.get(name)
            if given is not None and given not in neutral:
                raise unsupported(name, f"this server does not support {name!r}: leave it out")
        return fields

    @property
    def unknown(self) -> frozenset[str]:
        """Names of the fields that this server does not know."""
        return super().unknown - self.refused.keys()


def read_fields(record: type[FieldsT], value: Any) -> FieldsT:
    """Return a record of a JSON value.

    Raises:
        ApiError: 400, which names the field at fault.
    """
    try:
        return record.model_validate(value)
    except ValidationError as error:
        raise _error_of(error) from error


def _error_of(error: ValidationError) -> ApiError:
    """Return one error for the first field that does not fit.

    Where a field may have several types, the messages of all of them are joined.
    """
    problems: list[ErrorDetails] = error.errors(include_url=False, include_input=False)
    place = _place(problems[0])
    messages = [problem["msg"] for problem in problems if _place(problem) == place]
    text = " or ".join(dict.fromkeys(messages))
    missing = problems[0]["type"] == "missing"
    code = "missing_required_parameter" if missing else None
    return bad_request(f"{place}: {text}" if place else text, place or None, code)


def _place(problem: ErrorDetails) -> str:
    """Return the path of a field as a client writes it, without names of types."""
    place = ""
    for part in problem["loc"]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part.replace("_", "a").isalnum() and not _is_type(part):
            place += f".{part}" if place else part
    return place


def _is_type(part: str) -> bool:
    """Return True for the name that pydantic gives a branch of a union."""
    return part in {"str", "int", "float", "bool"} or part[:1].isupper()
