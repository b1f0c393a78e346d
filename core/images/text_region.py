"""TextRegion: where burned-in text lies in a picture."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TextRegion:
    """Where a line of lettering seems to be, in shares of the picture's width and height."""

    left: float
    top: float
    width: float
    height: float
    n_letters: int

    def lies_in(self, other: "TextRegion", *, slack: float = 0.02) -> bool:
        """Whether no edge of this region is farther than ``slack`` outside the other."""
        return (
            self.left >= other.left - slack
            and self.top >= other.top - slack
            and self.left + self.width <= other.left + other.width + slack
            and self.top + self.height <= other.top + other.height + slack
        )
