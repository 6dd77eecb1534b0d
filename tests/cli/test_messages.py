"""Messages of featkit's logger on stderr."""

from __future__ import annotations

import logging

from featkit.cli.messages import shown_messages


def test_a_message_is_printed_once_after_another_package_configured_logging(monkeypatch, capsys):
    """As onnxruntime.quantization does when it is imported."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])  # not in a fixture: pytest adds its own after it
    monkeypatch.setattr(root, "level", root.level)
    with shown_messages():
        logging.basicConfig(level=logging.INFO)
        logging.getLogger("featkit").warning("only 16 images")
        logging.getLogger("featkit.embeddings").info("4 images")
    assert root.handlers
    assert logging.getLogger("featkit").propagate
    assert capsys.readouterr().err == "warning: only 16 images\n4 images\n"


def test_handlers_of_the_calling_program_still_get_the_messages(caplog, capsys):
    with shown_messages():
        logging.getLogger("featkit").warning("only 16 images")
    assert capsys.readouterr().err == "warning: only 16 images\n"
    assert [record.getMessage() for record in caplog.records] == ["only 16 images"]
