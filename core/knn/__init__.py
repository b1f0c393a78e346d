"""Gallery, exact neighbour search, the distance-weighted vote as a ledger, and the choice of K."""

from core.knn.gallery import Gallery, split_parts
from core.knn.k_search import KScore, KSearch, search_k
from core.knn.voting import Ballot, cast_votes, compute_shares, read_shares, vote

__all__ = [
    "Ballot",
    "Gallery",
    "KScore",
    "KSearch",
    "cast_votes",
    "compute_shares",
    "read_shares",
    "search_k",
    "split_parts",
    "vote",
]
