"""The evaluation report: its numbers, its charts, its gallery and the page they stand on."""
