"""What the runs of a study say: pure functions of tables, with numpy and pandas alone."""
