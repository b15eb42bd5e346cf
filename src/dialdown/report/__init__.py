"""The report of a study: one HTML page that needs no network.

    run folder -> record (what was measured) -> verdict, tables, figures -> page

`page.write_report` is the way in.
"""
