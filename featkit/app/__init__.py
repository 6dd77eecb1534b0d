"""The web app, on Streamlit (extra ``app``); it runs on the user's own machine.

``settings`` says what the pages may read, ``models``, ``jobs``, ``gallery`` and ``views`` hold the
logic without Streamlit, ``pages`` shows it, and ``server`` starts it.
"""
