"""One attention call as transformers' attention interface saw it, and what sees which module."""
