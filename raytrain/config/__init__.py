"""What a run is (`run`), and how flags, files and presets make one (`resolve`). Pure: no torch."""
