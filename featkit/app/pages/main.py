"""The script that Streamlit runs for each session."""

from __future__ import annotations

import streamlit as st

from featkit.app.pages import clean, studies, train, try_models

# With the prefix of the package: the folder of this script is on the path of modules too.
from featkit.app.pages import map as map_page

st.set_page_config(page_title="featkit", layout="wide")

# Without icons: browsers would load that of a page as its favicon, from a server of Google.
PAGES = [
    st.Page(try_models.show, title="Try", url_path="try"),
    st.Page(train.show, title="Train", url_path="train"),
    st.Page(clean.show, title="Clean", url_path="clean"),
    st.Page(map_page.show, title="Map", url_path="map"),
    st.Page(studies.show, title="Studies", url_path="studies"),
]

st.navigation(PAGES, position="top").run()
