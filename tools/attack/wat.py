"""WebAssembly components as text: a handler of HTTP requests, and small ones made by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tools.attack.mutate import ODD_INTEGERS

__all__ = ["HANDLER", "PROGRAMS", "random_component"]

TYPES = """
  (import "wasi:http/types@0.2.0" (instance $types
    (type $cases (variant (case "connection-timeout" u8) (case "loop-detected" u8)))
    (export "error-code" (type $error (eq $cases)))
    (export "fields" (type $fields (sub resource)))
    (export "incoming-request" (type $request (sub resource)))
    (export "outgoing-response" (type $response (sub resource)))
    (export "response-outparam" (type $outparam (sub resource)))
    (export "[constructor]fields" (func (result (own $fields))))
    (export "[constructor]outgoing-response"
      (func (param "headers" (own $fields)) (result (own $response))))
    (export "[static]response-outparam.set"
      (func (param "param" (own $outparam))
        (param "response" (result (own $response) (error $error)))))))
  (alias export $types "incoming-request" (type $request))
  (alias export $types "response-outparam" (type $outparam))
  (core func $fields (canon lower (func $types "[constructor]fields")))
  (core func $response (canon lower (func $types "[constructor]outgoing-response")))
  (core func $set (canon lower (func $types "[static]response-outparam.set")))
  (core func $drop (canon resource.drop $request))"""
EXPORTS = """
  (func $handle (param "request" (own $request)) (param "response-out" (own $outparam))
    (canon lift (core func $i "handle")))
  (instance $handler (export "handle" (func $handle)))
  (export "wasi:http/incoming-handler@0.2.0" (instance $handler))"""
HOST_FUNCTIONS = """
      (export "fields" (func $fields)) (export "response" (func $response))
      (export "set" (func $set)) (export "drop" (func $drop))"""
IMPORTED = """
    (import "" "fields" (func $fields (result i32)))
    (import "" "response" (func $response (param i32) (result i32)))
    (import "" "set" (func $set (param i32 i32 i32 i32)))
    (import "" "drop" (func $drop (param i32)))"""
RESPOND = """
      (call $set (local.get $out) (i32.const 0) (call $response (call $fields)) (i32.const 0))
      (call $drop (local.get $request))"""


def handler(
    body: str, *, module: str = "", imports: str = "", given: str = "", imported: str = ""
) -> str:
    """Return a component whose handler runs `body` before it responds.

    Args:
        body: Instructions.
        module: Fields of the core module.
        imports: What the component imports besides, lowered.
        given: What of it the core module is given.
        imported: How the core module imports that.
    """
    return f"""(component {TYPES} {imports}
  (core module $m {IMPORTED} {imported} {module}
    (func (export "handle") (param $request i32) (param $out i32) {body} {RESPOND}))
  (core instance $i (instantiate $m (with "" (instance {HOST_FUNCTIONS} {given}))))
  {EXPORTS})"""


HANDLER = handler("")
"""Answers every request with 200 and nothing."""


@dataclass(frozen=True, slots=True)
class Call:
    """A function of the host: where it is, its types in WIT and in core WebAssembly.

    `declared` stands in the instance's type, `exported` is what it is called there.
    """

    interface: str
    declared: str
    exported: str
    core: str
    n_arguments: Sequence[str]
    has_result: bool = False


CALLS: Sequence[Call] = (
    Call(
        "wasi:random/random@0.2.0",
        '(export "get-random-bytes" (func (param "len" u64) (result (list u8))))',
        "get-random-bytes",
        "(param i64 i32)",
        ("i64", "i32"),
    ),
    Call(
        "wasi:random/random@0.2.0",
        '(export "get-random-u64" (func (result u64)))',
        "get-random-u64",
        "(result i64)",
        (),
        has_result=True,
    ),
    Call(
        "wasi:cli/environment@0.2.0",
        '(export "get-environment" (func (result (list (tuple string string)))))',
        "get-environment",
        "(param i32)",
        ("i32",),
    ),
    Call(
        "wasi:clocks/monotonic-clock@0.2.0",
        '(export "now" (func (result u64)))',
        "now",
        "(result i64)",
        (),
        has_result=True,
    ),
    Call(
        "wasi:cli/exit@0.2.0",
        '(export "exit" (func (param "status" (result))))',
        "exit",
        "(param i32)",
        ("i32",),
    ),
    Call(
        "fermyon:spin/variables@2.0.0",
        '(type $v (variant (case "undefined" string))) (export "error" (type $e (eq $v)))'
        '(export "get" (func (param "name" string) (result (result string (error $e)))))',
        "get",
        "(param i32 i32 i32)",
        ("i32", "i32", "i32"),
    ),
    Call(
        "fermyon:spin/llm@2.0.0",
        '(type $v (variant (case "model-not-supported") (case "runtime-error" string)'
        ' (case "invalid-input" string))) (export "error" (type $e (eq $v)))'
        '(type $u (record (field "prompt-token-count" u32)))'
        ' (export "embeddings-usage" (type $w (eq $u)))'
        '(type $r (record (field "embeddings" (list (list f32))) (field "usage" $w)))'
        ' (export "embeddings-result" (type $s (eq $r)))'
        '(export "generate-embeddings" (func (param "model" string)'
        ' (param "text" (list string)) (result (result $s (error $e)))))',
        "generate-embeddings",
        "(param i32 i32 i32 i32 i32)",
        ("i32", "i32", "i32", "i32", "i32"),
    ),
    Call(
        "missiles:silo/door@1.0.0",
        '(export "open" (func (param "a" s32) (result s32)))',
        "open",
        "(param i32) (result i32)",
        ("i32",),
        has_result=True,
    ),
)
LIBC = """
  (core module $libc
    (memory (export "memory") {pages})
    (global $next (mut i32) (i32.const {next}))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      {realloc}))
  (core instance $libc (instantiate $libc))
  (alias core export $libc "memory" (core memory $memory))
  (alias core export $libc "realloc" (core func $realloc))"""
REALLOCS = (
    """(global.get $next)
      (global.set $next (i32.add (global.get $next) (local.get 3)))""",
    "(i32.const 0)",
    "(i32.const -1)",
    "(i32.const 3)",
    "unreachable",
    "(loop (br 0)) (i32.const 0)",
)
BODIES = (
    "",
    "unreachable",
    "(loop (br 0))",
    "(drop (memory.grow (i32.const {odd})))",
    "(drop (i32.load (i32.const {odd})))",
    "(i32.store8 (i32.const {odd}) (i32.const 1))",
    "(drop (i32.div_s (i32.const {odd}) (i32.const 0)))",
    "(drop (table.grow (ref.null func) (i32.const {odd})))",
    "(call_indirect (i32.const {odd}))",
    "(call $drop (i32.const {odd}))",
    "(call $set (i32.const {odd}) (i32.const 0) (i32.const {odd}) (i32.const 0))",
    "(call $set (local.get $out) (i32.const {odd}) (i32.const 0) (i32.const {odd}))",
    "(drop (call $response (i32.const {odd})))",
    "(call $again)",
    "(memory.fill (i32.const 0) (i32.const 1) (i32.const {odd}))",
)
MODULE = """
    (memory {pages})
    (table {elements} funcref)
    (func $again (call $again))
    {start}"""


def _u32(random: Random) -> int:
    return random.choice((random.randrange(70_000), random.choice(ODD_INTEGERS) % 2**32))


def _argument(random: Random, kind: str) -> str:
    number = _u32(random) if kind == "i32" else random.choice(ODD_INTEGERS) % 2**64
    return f"({kind}.const {number if random.random() < 0.5 else random.randrange(64)})"


def _call(random: Random, *, pages: str) -> str:
    """A component that calls a function of the host, with arguments by chance."""
    call = random.choice(CALLS)
    arguments = " ".join(_argument(random, kind) for kind in call.n_arguments)
    called = f"(call $called {arguments})"
    body = f"(drop {called})" if call.has_result else called
    realloc = random.choice((REALLOCS[0], REALLOCS[0], random.choice(REALLOCS[:-1])))
    libc = LIBC.format(pages=pages, next=random.choice((1024, 65_000, 0)), realloc=realloc)
    lowered = (
        f'(core func $called (canon lower (func $called-in "{call.exported}")'
        " (memory $memory) (realloc $realloc)))"
    )
    return handler(
        body if random.random() < 0.8 else f"{body} {body}",
        imports=f'(import "{call.interface}" (instance $called-in {call.declared})) '
        f"{libc} {lowered}",
        given='(export "called" (func $called))',
        imported=f'(import "" "called" (func $called {call.core}))',
    )


def random_component(random: Random) -> str:
    """The text of a component; most are valid, and few do what is asked of them."""
    pages = str(random.choice((0, 1, 1, 1, 2, 100, 65_536, _u32(random))))
    if random.random() < 0.3:
        pages += f" {random.choice((1, 2, 65_536))}"
    if random.random() < 0.5:
        return _call(random, pages=pages)
    body = random.choice(BODIES) if random.random() < 0.98 else BODIES[2]
    if body == BODIES[2] and random.random() < 0.8:
        body = ""  # a loop without end takes until its time is up
    module = MODULE.format(
        pages=pages,
        elements=random.choice((0, 1, 10, 10**6, _u32(random))),
        start=random.choice(("", "", "", "(start $again)", '(data (i32.const 0) "abc")')),
    )
    text = handler(body.replace("{odd}", str(_u32(random))), module=module)
    if random.random() < 0.2:
        old, new = random.choice(CHANGES)
        text = text.replace(old, new)
    return text


CHANGES = (
    ("incoming-handler@0.2.0", "incoming-handler@0.2.99"),
    ("incoming-handler@0.2.0", "incoming-handler@0.3.0"),
    ("incoming-handler@0.2.0", "other-handler@0.2.0"),
    ("types@0.2.0", "types@0.2.9"),
    ("types@0.2.0", "types@0.3.0"),
    ("types@0.2.0", "typos@0.2.0"),
    ("(own $request)", "(borrow $request)"),
    ('(export "handle" (func $handle))', '(export "handles" (func $handle))'),
    ("response-outparam", "request-outparam"),
    ("outgoing-response", "incoming-response"),
    ('(case "loop-detected" u8)', '(case "loop-detected" string)'),
)
PROGRAMS: Sequence[str] = (
    HANDLER,
    "(component)",
    '(component (core module (func (export "a"))))',
    f"(component {TYPES})",
    handler("", module='(memory 1) (data (i32.const 0) "abc") (table 1 funcref)'),
)
"""Valid components, to be damaged as bytes."""
