"""The training loop and its parts. Knows no Ray, no MLflow and no study: values in, reports out."""
