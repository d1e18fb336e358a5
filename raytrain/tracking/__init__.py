"""The JSON log of a run, and MLflow, which is fed from it. `uploader` alone imports mlflow, and
`tensorboard` writes event files."""

import os

# MLflow sends usage statistics, and logs every table it makes and every run it ends, unless disabled. With its
# seven retries it blocks for four minutes when a server is down, though the log can be sent again later.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
