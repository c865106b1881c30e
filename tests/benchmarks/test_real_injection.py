"""The rows and documents of the injection study: what a test row is asked about is known from where it says."""

from collections import Counter


def test_test_rows_are_known_from_where_they_say(script):
    rows, documents = script("real_injection").draw()
    regulation = {row["id"]: row["answer"].rpartition(" ")[2] for row in rows}
    trained = {regulation[row["id"]] for row in rows if row["split"] == "train"}
    known_by = {row["id"]: row["known_by"] for row in rows if row["split"] == "test"}
    for name, source in known_by.items():
        in_rows, in_documents = regulation[name] in trained, regulation[name] in documents
        assert in_documents == (source != "no document")
        assert in_rows or source != "rows and documents"
        assert not in_rows or source != "documents alone"
    assert Counter(known_by.values()) == {"rows and documents": 13, "documents alone": 87, "no document": 40}
    assert len(regulation) == len(rows)  # no row is in two splits
    assert all(number in text for number, text in documents.items())
