"""Everything NeighborDx can do; works from a notebook with no Streamlit installed."""
