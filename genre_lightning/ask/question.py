"""Questions about movies: messages from a template, the format of the answer, and parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from genre_lightning.ask.answer import MAX_SCORE, WHY, answer_schema, check_genres
from genre_lightning.ask.poster import PosterFormat, SentPoster
from genre_lightning.errors import UserError
from genre_lightning.movies.movie import Movie, PosterFile
from genre_lightning.store import content_key

#: Part of every question's key: increment it when the same settings give a different question.
QUESTION_VERSION = 1
#: One JSON object with 0 to 100 for each genre; or the probability of yes against no per genre.
ANSWER_FORMATS = ("json", "logprobs")
POSTER = "poster"
MAX_EXAMPLES = 64


@dataclass(frozen=True)
class Example:
    """A train movie with its genres, shown before the question.

    Attributes:
        id: the movie's id; the example is not shown in questions about this movie.
        columns: texts by column.
        genres: the movie's genres.
        poster: encoded poster; None for none.
    """

    id: str
    columns: Mapping[str, str]
    genres: tuple[str, ...]
    poster: SentPoster | None = None


@dataclass(frozen=True)
class Prompt:
    """A file of ``conf/prompt``.

    Attributes:
        name: name of the prompt.
        system: Jinja template of the first message. Its variables are ``genres``, ``definitions``,
            ``answers`` ("json" or "logprobs") and ``why``, the name of that key in the answer.
        user: Jinja template of the question. It has these variables, too, and ``columns``, the
            texts by column; ``poster``, whether one is shown; and ``genre``, the genre in question,
            or None for all.
        examples: number of train movies that are shown with their genres.
        example_posters: also show the posters of examples, if posters are shown.
        definitions: definitions by genre.
    """

    name: str
    system: str
    user: str
    examples: int = 0
    example_posters: bool = False
    definitions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.examples) is not int or not 0 <= self.examples <= MAX_EXAMPLES:
            raise UserError(f"prompt.examples={self.examples} is not in 0..{MAX_EXAMPLES}")


@final
class Questioner:
    """Makes questions about movies, the same for the same movie and settings.

    Args:
        base_url: the server's address, part of every key.
        model: the model's name on the server.
        genres: G names, in the dataset's order.
        show: columns of a movie that are shown, "poster" as an image.
        prompt: templates.
        examples: train movies, one more than are shown, as a substitute when an example is itself
            the movie in question.
        answers: one of ``ANSWER_FORMATS``.
        parameters: parameters of each request, such as temperature and max_tokens; None values are
            left out.
        why_max_length: see :func:`genre_lightning.ask.answer.answer_schema`.
        top_logprobs: number of likeliest tokens whose probabilities are requested.
        poster: how posters are sent.

    Raises:
        UserError: an argument can't be used; the message names it as in the configuration.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        genres: Sequence[str],
        show: Sequence[str],
        prompt: Prompt,
        examples: Sequence[Example] = (),
        answers: str = "json",
        parameters: Mapping[str, Any] | None = None,
        why_max_length: int | None = None,
        top_logprobs: int = 20,
        poster: PosterFormat | None = None,
    ) -> None:
        check_genres(genres)
        if answers not in ANSWER_FORMATS:
            raise UserError(f"answers={answers} must be one of {', '.join(ANSWER_FORMATS)}")
        if not show or len(set(show)) < len(show):
            names = ",".join(map(str, show))
            raise UserError(f"show=[{names}] must name one or more columns, each once")
        if why_max_length is not None and (type(why_max_length) is not int or why_max_length < 1):
            raise UserError(f"why_max_length={why_max_length} must be a whole number above 0")
        if type(top_logprobs) is not int or top_logprobs < 2:
            raise UserError(f"top_logprobs={top_logprobs} must be a whole number of at least 2")
        self.base_url = base_url
        self.model = model
        self.genres = tuple(genres)
        self.show = tuple(show)
        self.prompt = prompt
        self.examples = tuple(examples)
        self.answers = answers
        self.parameters = {k: v for k, v in (parameters or {}).items() if v is not None}
        self.why_max_length = why_max_length
        self.top_logprobs = top_logprobs
        self.poster = poster or PosterFormat()
        reserved = {"model", "messages", "stream", "response_format", "logprobs", "top_logprobs"}
        for name in sorted(reserved & set(self.parameters)):
            raise UserError(f"parameters.{name}: that is set by the command itself")
        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        try:
            self._system = environment.from_string(prompt.system)
            self._user = environment.from_string(prompt.user)
        except TemplateError as error:
            raise UserError(f"prompt={prompt.name}: not a Jinja template: {error}") from error
        # Renders the templates once, so that an unknown name is reported before any request.
        self.messages({"title": ""}, None, self.genres[0])

    def texts(self, movie: Movie) -> dict[str, str]:
        """The columns of a movie that are shown as text."""
        shown = {name: movie.value(name) for name in self.show}
        return {name: text for name, text in shown.items() if isinstance(text, str) and text}

    def poster_of(self, movie: Movie) -> PosterFile | None:
        """The poster to show; None if the movie has none, or if posters are not shown."""
        poster = movie.value(POSTER) if POSTER in self.show else None
        return poster if isinstance(poster, PosterFile) and poster.exists else None

    def bodies(
        self, movie_id: str, texts: Mapping[str, str], poster: SentPoster | None
    ) -> Iterator[dict[str, Any]]:
        """The bodies of a movie's requests: one in all, or one per genre."""
        if self.answers == "json":
            schema = answer_schema(self.genres, self.why_max_length)
            json_schema = {"name": "genres", "strict": True, "schema": schema}
            yield {
                "model": self.model,
                "messages": self.messages(texts, poster, None, movie_id),
                **self.parameters,
                "response_format": {"type": "json_schema", "json_schema": json_schema},
            }
            return
        for genre in self.genres:
            yield {
                "model": self.model,
                "messages": self.messages(texts, poster, genre, movie_id),
                **self.parameters,
                self._length_parameter(): 1,
                "logprobs": True,
                "top_logprobs": self.top_logprobs,
            }

    def _length_parameter(self) -> str:
        """Name of the parameter that limits the answer's length for this model."""
        newer = "max_completion_tokens"
        return newer if newer in self.parameters else "max_tokens"

    def messages(
        self,
        texts: Mapping[str, str],
        poster: SentPoster | None,
        genre: str | None,
        movie_id: str = "",
    ) -> list[dict[str, Any]]:
        """The messages to the model.

        Args:
            texts: the movie's texts, by column.
            poster: the movie's poster; None for none.
            genre: the genre in question; None for all.
            movie_id: the movie's id, to leave it out of the examples.

        Raises:
            UserError: a template can't be rendered, for example because of an unknown name.
        """
        variables = {
            "genres": list(self.genres),
            "definitions": {g: d for g, d in self.prompt.definitions.items() if g in self.genres},
            "answers": self.answers,
            "why": WHY,
        }
        others = [example for example in self.examples if example.id != movie_id]
        try:
            system = self._system.render(variables).strip()
            conversation: list[dict[str, Any]] = (
                [{"role": "system", "content": system}] if system else []
            )
            for example in others[: self.prompt.examples]:
                conversation.append(
                    self._user_message(variables, example.columns, example.poster, genre)
                )
                conversation.append(
                    {"role": "assistant", "content": self._correct_answer(example, genre)}
                )
            conversation.append(self._user_message(variables, texts, poster, genre))
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise UserError(f"prompt={self.prompt.name}: {error}") from error
        return conversation

    def _user_message(
        self,
        variables: Mapping[str, Any],
        texts: Mapping[str, str],
        poster: SentPoster | None,
        genre: str | None,
    ) -> dict[str, Any]:
        text = self._user.render(
            {**variables, "columns": dict(texts), "poster": poster is not None, "genre": genre}
        ).strip()
        if poster is None:
            # Servers of text-only models may not accept a list of parts.
            return {"role": "user", "content": text}
        image = {"type": "image_url", "image_url": {"url": poster.url}}
        return {"role": "user", "content": [{"type": "text", "text": text}, image]}

    def _correct_answer(self, example: Example, genre: str | None) -> str:
        if genre is not None:
            return "yes" if genre in example.genres else "no"
        numbers = {name: MAX_SCORE * (name in example.genres) for name in self.genres}
        why = f"It is known as {', '.join(example.genres)}."
        return json.dumps({**numbers, WHY: why}, ensure_ascii=False)

    def key(self, movie_id: str, texts: Mapping[str, str], image: str | None) -> str:
        """Hash of URL, model, messages and parameters, with images replaced by their digests.

        Args:
            movie_id: the movie's id.
            texts: the movie's texts, by column.
            image: digest of the encoded poster; None for none.
        """
        stand_in = None if image is None else SentPoster(image, image)
        digests = [
            None if example.poster is None else example.poster.digest
            for example in self.examples
            if example.id != movie_id
        ]
        bodies = list(self.bodies(movie_id, texts, stand_in))
        for body in bodies:
            _replace_images(body["messages"][:-1], iter(digests))
        # Hashing one text takes a tenth of the time of hashing its parts.
        text = json.dumps(bodies, sort_keys=True)
        return content_key("question", QUESTION_VERSION, self.base_url, self.answers, text)

    def to_plain(self) -> dict[str, Any]:
        """All settings of the questions as plain data for JSON, without the API key."""
        return {
            "base_url": self.base_url,
            "model": self.model,
            "genres": list(self.genres),
            "show": list(self.show),
            "prompt": {**vars(self.prompt), "definitions": dict(self.prompt.definitions)},
            "examples": [
                {
                    "id": example.id,
                    "columns": dict(example.columns),
                    "genres": list(example.genres),
                    "poster": None if example.poster is None else vars(example.poster),
                }
                for example in self.examples
            ],
            "answers": self.answers,
            "parameters": self.parameters,
            "why_max_length": self.why_max_length,
            "top_logprobs": self.top_logprobs,
            "poster": vars(self.poster),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Questioner:
        """Rebuild a questioner from the data of :meth:`to_plain`.

        Raises:
            TypeError, LookupError, ValueError, UserError: the data are invalid.
        """
        for name in ("genres", "show"):
            if type(plain[name]) is not list or not all(type(text) is str for text in plain[name]):
                raise ValueError(f"{name} is not a list of texts")
        examples = [
            Example(
                example["id"],
                example["columns"],
                tuple(example["genres"]),
                None if example["poster"] is None else SentPoster(**example["poster"]),
            )
            for example in plain["examples"]
        ]
        return cls(
            **{
                **plain,
                "prompt": Prompt(**plain["prompt"]),
                "poster": PosterFormat(**plain["poster"]),
                "examples": examples,
            }
        )


def _replace_images(messages: Sequence[Mapping[str, Any]], digests: Iterator[str | None]) -> None:
    """Replace the examples' images by digests, in place."""
    for message in messages:
        if message["role"] != "user":
            continue
        digest = next(digests)
        if digest is not None:
            message["content"][1]["image_url"]["url"] = digest
