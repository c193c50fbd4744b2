"""Find phrases in a text: whole words in any case, whatever punctuation or line breaks stand between the words."""

import itertools
import re


class Phrases:
    """A list of phrases, compiled for fast search. They are in lower case, their words separated by one space."""

    def __init__(self, phrases: tuple[str, ...]):
        # By first word: one pattern for all phrases that start with it, and for each of its groups the phrases that it
        # stands for. The pattern starts with a literal, which `re` finds fast, and only then checks for a word
        # boundary. The longest phrase is tried first; a match of it also matches the phrases that it starts with.
        self._patterns: dict[str, tuple[re.Pattern, list[set[str]]]] = {}
        between = r"[^\w<]+"  # white space and punctuation but no tag: "let me</think>" is not "let me think"
        for first in dict.fromkeys(phrase.split()[0] for phrase in phrases):
            ours = sorted((phrase for phrase in phrases if phrase.split()[0] == first), key=len, reverse=True)
            endings = "|".join("(" + "".join(between + word for word in phrase.split()[1:]) + ")" for phrase in ours)
            pattern = re.compile(rf"{first}(?<![^\W_]{first})(?:{endings})(?![^\W_])")
            contained = [{one for one in ours if f"{phrase} ".startswith(f"{one} ")} for phrase in ours]
            self._patterns[first] = pattern, [set(), *contained]

    def find(self, text: str) -> set[str]:
        """The phrases that occur in a text."""
        text, found = text.lower(), set()
        for first, (pattern, phrases) in self._patterns.items():
            start = text.find(first)  # several times faster than the pattern, and usually there is nothing to find
            if start >= 0:
                found = found.union(*(phrases[match.lastindex] for match in pattern.finditer(text, start)))
        return found

    def highlight(self, text: str) -> list[tuple[str, str | None]]:
        """A text in pieces for display, each with `"phrase"`, `"tag"` or None."""
        lowered = "".join(character.lower()[0] for character in text)  # a few letters grow when they are lowered
        kinds: list[str | None] = [None] * len(text)
        matches = [("phrase", match) for pattern, _ in self._patterns.values() for match in pattern.finditer(lowered)]
        matches += [("tag", match) for match in re.finditer(r"</?(?:think|answer)>", text)]
        for kind, match in matches:
            kinds[match.start() : match.end()] = [kind] * len(match[0])
        pieces = itertools.groupby(zip(text, kinds, strict=True), key=lambda pair: pair[1])
        return [("".join(character for character, _ in piece), kind) for kind, piece in pieces]
