"""The report of a study: one HTML page that needs no network.

    run folder -> rows -> tables, claims, figures -> page

`page.write_report` is the way in.
"""
