"""The form of an answer: how it is asked for, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass

from .answers import Answer, number, yes

NUMBER, YES_OR_NO = "number", "yes or no"


@dataclass(frozen=True)
class Form:
    """kind: NUMBER, from lowest to highest, or YES_OR_NO."""

    kind: str
    lowest: float
    highest: float

    @property
    def request(self) -> str:
        """What is added to the question so that the answer can be read."""
        if self.kind == YES_OR_NO:
            return "Answer with yes or no and nothing else."
        return (
            f"Answer with one number from {self.lowest:g} (not at all) to {self.highest:g} "
            "(perfectly) and nothing else."
        )

    @property
    def reminder(self) -> str:
        """What is added when it could not."""
        if self.kind == YES_OR_NO:
            return "Your answer must be one single word: either yes or no. No other words."
        return (
            f"Your answer must be one single number between {self.lowest:g} and "
            f"{self.highest:g}, for example {(self.lowest + self.highest) / 2:g}. No words."
        )

    def read(self, answer: Answer) -> float:
        """The score. Raises Unreadable."""
        if self.kind == YES_OR_NO:
            return yes(answer)
        return number(answer, self.lowest, self.highest)
