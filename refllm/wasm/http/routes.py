"""Routes of HTTP triggers: which component answers a path, and what it is told about it.

    /cart               that path
    /users/:id/edit     one segment of any name
    /static/...         that path and every one below

Where several match, the one with the earliest segment that is written out wins over one with a
wildcard there: `/users/me` over `/users/:id` over `/users/...`.

Sources: https://spinframework.dev/http-trigger, "HTTP Trigger Routes" and "Additional Request
Information"; Spin's crates/http/src/routes.rs and crates/trigger-http/src/headers.rs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Match", "Route", "best_match"]

BELOW = "..."
EXACT, SINGLE, TRAILING = range(3)


@dataclass(frozen=True, slots=True)
class Route:
    """A route as the manifest has it, and the id of the component behind it."""

    pattern: str
    component: str
    base: str = ""

    @property
    def path(self) -> str:
        """The route with the application's base in front, which only Spin 2 and earlier have."""
        return "/" + "/".join([*_segments(self.base), *_segments(self.pattern)])

    def match(self, path: str) -> Match | None:
        """What the route has in common with the path, None where it does not match."""
        pattern, segments = _segments(self.path), _segments(path)
        is_trailing = pattern[-1:] == [BELOW]
        fixed = pattern[:-1] if is_trailing else pattern
        if len(segments) < len(fixed) or (len(segments) > len(fixed) and not is_trailing):
            return None
        names: dict[str, str] = {}
        for wanted, segment in zip(fixed, segments, strict=False):
            if wanted.startswith(":"):
                names[wanted[1:]] = segment
            elif wanted != segment:
                return None
        if not is_trailing:
            return Match(self, "", names)
        rest = "".join(f"/{segment}" for segment in segments[len(fixed) :])
        return Match(self, f"{rest}/" if path.endswith("/") else rest, names)

    def rank(self) -> tuple[int, ...]:
        """The smaller, the more it says about the paths that it matches."""
        return tuple(_rank(segment) for segment in _segments(self.path))


@dataclass(frozen=True, slots=True)
class Match:
    """A route that matches: the part of the path below it, and what its wildcards stand for."""

    route: Route
    path_info: str
    names: dict[str, str]

    def headers(self, *, full_url: str, client: str) -> list[tuple[str, bytes]]:
        """The headers by which Spin tells a component about the request."""
        path = self.route.path
        values = {
            "spin-full-url": full_url,
            "spin-path-info": self.path_info,
            "spin-matched-route": path,
            "spin-raw-component-route": self.route.pattern,
            "spin-component-route": self.route.pattern.removesuffix(f"/{BELOW}"),
            "spin-base-path": self.route.base or "/",
            "spin-client-addr": client,
            **{f"spin-path-match-{_hyphenated(name)}": text for name, text in self.names.items()},
        }
        return [(name, value.encode("utf-8", "replace")) for name, value in values.items()]


def best_match(routes: Iterable[Route], path: str) -> Match | None:
    """The match of the route that says most about the path; None where no route matches.

    The path is as the client wrote it: what is percent-encoded stays so, and is no slash. Of two
    routes that are the same the last wins.
    """
    matches = [match for route in routes if (match := route.match(path)) is not None]
    return min(reversed(matches), key=lambda match: match.route.rank(), default=None)


def _hyphenated(name: str) -> str:
    return name.lower().replace("_", "-")


def _segments(path: str) -> list[str]:
    return [segment for segment in path.split("/") if segment]


def _rank(segment: str) -> int:
    if segment == BELOW:
        return TRAILING
    return SINGLE if segment.startswith(":") else EXACT
