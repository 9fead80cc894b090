"""Strings in names that could lead out of a folder."""

from __future__ import annotations

SLASHES = ["/", "\\", "\u2215", "\u2044", "\uff0f", "\u29f8", "\uff3c", "%2f", "%2F", "%5c", "%252f", "\\x2f", "&#47;"]
DOTS = [
    *("..", ".", "...", "\u2024\u2024", "\u2025", "\uff0e\uff0e"),
    *("%2e%2e", "%2E.", "%252e%252e", ".\u200b.", ".\x00.", ". ."),
]
OTHERS = [
    *("", "~", "$HOME", "*", "C:", "file:", "s3://", "://", "@"),
    *("?", "#", "=", "etc", "\n", "\x00", "\ufeff", "\u202e"),
]
