"""Conclusions from the runs of a study: pure functions of tables, with numpy and pandas alone."""
