"""One component of a gitignore pattern as a regular expression that never takes long.

`*`, `?`, `[...]` with ranges, negation and POSIX classes, and backslash. Characters are those of
surrogateescape: a byte that is no UTF-8 is one character.
"""

import re

_CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": " \\t",
    "cntrl": "\\x00-\\x1f\\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": "!-/:-@\\[-`{-~",
    "space": " \\t\\n\\r\\f\\v",
    "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
}
_STAR = None
"""In a list of tokens: any number of characters."""


def translate(glob: str) -> str:
    """Return the regular expression that a whole name must match; raises ValueError.

    It never matches a slash, so that it can be looked for among many names with slashes between
    them. Each star but the last takes as little as it can and never tries again (an atomic group), so
    that a name with many repetitions costs no more than another.
    """
    chunks: list[str] = [""]
    for token in _tokens(glob):
        if token is _STAR:
            chunks.append("")
        else:
            chunks[-1] += token
    first, *rest = chunks
    if not rest:
        return first
    *middle, last = rest
    return first + "".join(f"(?>[^/]*?{chunk})" for chunk in middle) + "[^/]*" + last


def literal_of(glob: str) -> str | None:
    """Return the one name that a glob without wildcards stands for; None when it has some."""
    if any(character in "*?[" for character in re.sub(r"\\.", "", glob, flags=re.DOTALL)):
        return None
    return re.sub(r"\\(.)", r"\1", glob, flags=re.DOTALL)


def _tokens(glob: str) -> list[str | None]:
    tokens: list[str | None] = []
    at = 0
    while at < len(glob):
        character = glob[at]
        at += 1
        if character == "*":
            if not tokens or tokens[-1] is not _STAR:
                tokens.append(_STAR)
        elif character == "?":
            tokens.append("[^/]")
        elif character == "[":
            token, at = _bracket(glob, at)
            tokens.append(token)
        elif character == "\\":
            if at == len(glob):
                raise ValueError("ends with a backslash that escapes nothing")
            tokens.append(re.escape(glob[at]))
            at += 1
        else:
            tokens.append(re.escape(character))
    return tokens


def _bracket(glob: str, at: int) -> tuple[str, int]:
    """Read what follows a `[`; return the set as a regular expression, and where it ends."""
    negated = glob[at : at + 1] in {"!", "^"}
    at += negated
    items: list[str] = []
    first = True
    while True:
        if at >= len(glob):
            raise ValueError("has a [ without its ]")
        if glob[at] == "]" and not first:
            break
        first = False
        named = re.compile(r"\[:([a-z]+):\]").match(glob, at)
        if named is not None:
            if named[1] not in _CLASSES:
                raise ValueError(f"has [:{named[1]}:], which is no class of characters")
            items.append(_CLASSES[named[1]])
            at = named.end()
            continue
        low, at = _member(glob, at)
        if glob[at : at + 1] == "-" and glob[at + 1 : at + 2] not in {"]", ""}:
            high, at = _member(glob, at + 1)
            if high < low:
                raise ValueError(f"has the range {low}-{high}, which is empty")
            items.append(f"{re.escape(low)}-{re.escape(high)}")
        else:
            items.append(re.escape(low))
    if negated:
        return f"[^/{''.join(items)}]", at + 1
    return f"(?!/)[{''.join(items)}]", at + 1


def _member(glob: str, at: int) -> tuple[str, int]:
    if glob[at] == "\\":
        at += 1
        if at >= len(glob):
            raise ValueError("has a [ without its ]")
    return glob[at], at + 1
