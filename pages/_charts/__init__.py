"""Figures from core results: pure functions that do not call Streamlit."""
