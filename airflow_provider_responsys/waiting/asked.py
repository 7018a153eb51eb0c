"""What a DAG's author asks about: request ids, or the outputs of pushes, checked."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from airflow_provider_responsys.errors import InvalidSettings
from airflow_provider_responsys.protocol.push import REQUEST_ID
from airflow_provider_responsys.protocol.sizes import sizes_in

NO_IDS = (
    "the push left no request ids: it failed before anything was sent, or did not run. "
    "There is nothing to wait for; look at the push"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the DAG's author asks about: requests, how many recipients were *accepted* in them, and of which sends.

    *sizes* is how many recipients a request has, where a push's output says so, and
    *problems* why pushes failed.
    """

    ids: tuple[str, ...]
    accepted: int | None
    send_keys: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    recipients_paths: tuple[str, ...] = ()
    """Where pushes wrote who is in which request."""
    unwritten: tuple[str, ...] = ()
    """Why pushes did not write that, though they were asked to."""

    @classmethod
    def of(cls, value: Any) -> Self:
        """Read *value*, or raise `InvalidSettings` if no push leaves such a thing."""
        ids: dict[str, None] = {}
        accepted: list[int | None] = []
        send_keys: dict[str, None] = {}
        sizes: dict[str, int] = {}
        problems: list[str] = []
        paths: dict[str, None] = {}
        unwritten: list[str] = []
        for found in _pushes(value):
            if isinstance(found, Mapping):
                if problem := found.get("problem"):
                    problems.append(str(problem))
                if isinstance(path := found.get("recipients_path"), str):
                    paths[path] = None
                if isinstance(why := found.get("recipients_problem"), str):
                    unwritten.append(why)
                its_ids = _ids_of(found)
                ids.update(dict.fromkeys(its_ids))
                sizes.update(_sizes_of(found, its_ids))
                accepted.append(_accepted_of(found))
                if isinstance(send_key := found.get("send_key"), str):
                    send_keys[send_key] = None
            else:
                ids[_checked(found)] = None
                accepted.append(None)
        total = None if None in accepted else sum(filter(None, accepted))
        return cls(tuple(ids), total, tuple(send_keys), sizes, tuple(problems), tuple(paths), tuple(unwritten))


def _pushes(value: Any) -> Iterator[Any]:
    """Yield every request id and every push's output in *value*, however deep mapping has nested them."""
    if value is None:
        raise InvalidSettings(f"request_ids is None: {NO_IDS}")
    if isinstance(value, (str, bytes)):
        raise InvalidSettings(
            'request_ids is a text: give a list, or the push itself (push.output or push.output["request_ids"]); '
            "a template in quotes renders to a text"
        )
    if isinstance(value, Mapping):
        yield value
    elif isinstance(value, Iterable):
        for item in value:
            if isinstance(item, str):
                yield item
            else:
                yield from _pushes(item)
    else:
        raise InvalidSettings(f"request_ids holds a {type(value).__name__}: give a list of request ids")


def _ids_of(push: Mapping[str, Any]) -> list[str]:
    if "request_ids" not in push:
        raise InvalidSettings("request_ids holds a mapping without request_ids: it is not the output of a push")
    ids = push["request_ids"]
    if ids is None:
        raise InvalidSettings(f"request_ids is None: {NO_IDS}")
    if not isinstance(ids, (list, tuple)):
        raise InvalidSettings("request_ids in the output of a push is not a list")
    return [_checked(request_id) for request_id in ids]


def _sizes_of(push: Mapping[str, Any], ids: Sequence[str]) -> dict[str, int]:
    if (found := push.get("request_sizes")) is None:
        return {}
    if (sizes := sizes_in(found, len(ids))) is None:
        raise InvalidSettings("request_sizes in the output of a push does not match its request_ids")
    return {request_id: size for request_id, size in zip(ids, sizes, strict=True) if size}


def _accepted_of(push: Mapping[str, Any]) -> int | None:
    recipients = push.get("recipients")
    accepted = recipients.get("accepted") if isinstance(recipients, Mapping) else None
    return accepted if type(accepted) is int and accepted >= 0 else None


def _checked(request_id: Any) -> str:
    if not isinstance(request_id, str) or not REQUEST_ID.fullmatch(request_id):
        raise InvalidSettings("request_ids holds something that is no request id")
    return request_id
