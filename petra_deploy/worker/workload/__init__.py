"""What users bring: model files in every form, told apart by content, and data.

`opened.py` is what later jobs use: `open_module` and `open_graph`. Everything else serves the
load job. None of a file's own code runs unless the user has named or trusted it.
"""
