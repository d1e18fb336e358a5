"""A study's answer as one page of HTML, as Markdown, and as pictures. `python -m raytrain.report` writes it."""
