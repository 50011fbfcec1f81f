"""Completion in bash, beyond what click does: of words with a `=` in them."""

from __future__ import annotations

from click.shell_completion import BashComplete, CompletionItem


class Bash(BashComplete):
    """Bash takes `BN101=warning` for three words, of which it completes the last."""

    _before = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words before the one to complete, and that one whole."""
        args, incomplete = super().get_completion_args()
        if incomplete == "=" and args and not args[-1].startswith("-"):
            self._before = f"{args.pop()}="
            return args, self._before
        if len(args) > 1 and args[-1] == "=" and not args[-2].startswith("-"):
            self._before = f"{args[-2]}="
            return args[:-2], f"{self._before}{incomplete}"
        return args, incomplete

    def format_completion(self, item: CompletionItem[str]) -> str:
        """Return an answer without what bash has taken for other words."""
        return f"{item.type},{item.value.removeprefix(self._before)}"
