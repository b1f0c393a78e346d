"""TextRegion: the position of burned-in text in an image."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TextRegion:
    """Position of a line of suspected text, as fractions of the image's width and height."""

    left: float
    top: float
    width: float
    height: float
    n_letters: int

    def lies_in(self, other: "TextRegion", *, slack: float = 0.02) -> bool:
        """Whether this region lies within the other, allowing ``slack`` at each edge."""
        return (
            self.left >= other.left - slack
            and self.top >= other.top - slack
            and self.left + self.width <= other.left + other.width + slack
            and self.top + self.height <= other.top + other.height + slack
        )
