"""Core results -> figures: pure functions, no call of Streamlit."""
