"""The script that Streamlit runs for each session."""

from __future__ import annotations

import streamlit as st

from featkit.app.pages import train, try_models

st.set_page_config(page_title="featkit", layout="wide")

PAGES = [
    st.Page(try_models.show, title="Try", icon=":material/image_search:", url_path="try"),
    st.Page(train.show, title="Train", icon=":material/model_training:", url_path="train"),
]

st.navigation(PAGES, position="top").run()
