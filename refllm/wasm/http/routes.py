"""Routes of HTTP triggers: which component answers a path, and the `spin-*` headers it gets.

    /cart               that path
    /users/:id/edit     one segment of any name
    /static/...         that path and every one below

If several match, a literal segment wins over a wildcard, and the earliest difference decides:
`/users/me` over `/users/:id` over `/users/...`.

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
    """A route as written in the manifest, and the id of its component."""

    pattern: str
    component: str
    base: str = ""

    @property
    def path(self) -> str:
        """The route below the application's base, which only version 1 of the manifest has."""
        return "/" + "/".join([*_segments(self.base), *_segments(self.pattern)])

    def match(self, path: str) -> Match | None:
        """Return the match of the route and the path; None if it does not match."""
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
        """Return what sorts routes, the most specific first."""
        return tuple(
            TRAILING if segment == BELOW else SINGLE if segment.startswith(":") else EXACT
            for segment in _segments(self.path)
        )


@dataclass(frozen=True, slots=True)
class Match:
    """A route that matches: the part of the path below it, and the values of its wildcards."""

    route: Route
    path_info: str
    names: dict[str, str]

    def headers(self, *, full_url: str, client: str) -> list[tuple[str, bytes]]:
        """Return the headers in which a component gets the request's address and route."""
        path = self.route.path
        values = {
            "spin-full-url": full_url,
            "spin-path-info": self.path_info,
            "spin-matched-route": path,
            "spin-raw-component-route": self.route.pattern,
            "spin-component-route": self.route.pattern.removesuffix(f"/{BELOW}"),
            "spin-base-path": self.route.base or "/",
            "spin-client-addr": client,
            **{
                f"spin-path-match-{name.lower().replace('_', '-')}": text
                for name, text in self.names.items()
            },
        }
        return [(name, value.encode("utf-8", "replace")) for name, value in values.items()]


def best_match(routes: Iterable[Route], path: str) -> Match | None:
    """Return the match of the most specific route; None if no route matches.

    Of two equal routes the last wins.

    Args:
        routes: The application's.
        path: As the client wrote it: percent-encoded characters stay so, and are no slashes.
    """
    matches = [match for route in routes if (match := route.match(path)) is not None]
    return min(reversed(matches), key=lambda match: match.route.rank(), default=None)


def _segments(path: str) -> list[str]:
    return [segment for segment in path.split("/") if segment]
