"""Everything NeighborDx can do; works from a notebook with no Streamlit installed."""

__version__ = "0.2.0"
